-- Writes a C file that holds the given Lua files, compiled: what the host loads them from.
-- Usage: lua5.4 embed.lua OUT.c ROOT FILE...; a file outside ROOT is the module lockkeeper.audits.NAME
local out_path, root = arg[1], arg[2]
local out = assert(io.open(out_path, "wb"))

local function name_of(path)
  if path:sub(1, #root + 1) == root .. "/" then
    return path:sub(#root + 2)
  end
  return "lockkeeper/audits/" .. path:match("[^/]+$")
end

local function module_name(path)
  local name = name_of(path):gsub("%.lua$", ""):gsub("/init$", ""):gsub("/", ".")
  return name
end

local entries = {}
out:write("/* Made from lua/ by src/host/embed.lua. */\n#include \"host/state.h\"\n\n")
for i = 3, #arg do
  local path = arg[i]
  local file = assert(io.open(path, "rb"))
  local chunk = assert(load(file:read("a"), "=(lockkeeper)" .. name_of(path):sub(#"lockkeeper" + 1), "t"))
  file:close()
  local code = string.dump(chunk)
  local bytes = {}
  for n = 1, #code do
    bytes[n] = code:byte(n) .. (n % 20 == 0 and ",\n" or ",")
  end
  out:write(("static const unsigned char code_%d[] = {\n%s};\n"):format(i, table.concat(bytes)))
  entries[#entries + 1] = ('    {"%s", code_%d, sizeof code_%d},\n'):format(module_name(path), i, i)
end
out:write("\nconst EmbeddedLua EMBEDDED_LUA[] = {\n", table.concat(entries), "    {NULL, NULL, 0},\n};\n")
out:close()
