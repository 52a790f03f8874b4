-- One value of the database: lockkeeper run tests/bench/ask.lua SQL
local lock = require "lockkeeper"
local row = lock.connect():query(arg[1])[1]
local _, value = next(row or {})
print(tostring(value))
