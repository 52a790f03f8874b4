--- Texts in XML and HTML: whatever somebody chose as a query or a name is text there, and nothing else.
local safe = require "lockkeeper.report.safe"

local markup = {}

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

local function escape(text)
  -- Two code points that are valid UTF-8, but no characters of XML.
  text = text:gsub("\u{FFFE}", "\u{FFFD}"):gsub("\u{FFFF}", "\u{FFFD}")
  return (text:gsub("[&<>\"']", ENTITIES))
end

--- On one line.
---@param text string
---@return string
function markup.line(text)
  return escape(safe.line(text))
end

--- Its lines kept.
---@param text string
---@return string
function markup.block(text)
  return escape(safe.block(text))
end

local POLICY = "default-src 'none'; style-src 'unsafe-inline'"

local PAGE = [[
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="%s">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<style>
%s</style>
</head>
<body>
%s</body>
</html>
]]

--- A page that needs nothing else, and in which nothing runs.
---@param title string
---@param style string  CSS
---@param body string   HTML
---@return string
function markup.page(title, style, body)
  return PAGE:format(POLICY, markup.line(title), style, body)
end

return markup
