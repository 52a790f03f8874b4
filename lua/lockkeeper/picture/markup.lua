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

return markup
