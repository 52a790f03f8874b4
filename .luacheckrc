std = "lua54"
max_line_length = 110
files["tests"] = { std = "lua54+busted" }
exclude_files = { "build*" }
