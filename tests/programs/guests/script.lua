-- Closures, tables, coroutines, strings, integer and float arithmetic, errors.
local function sieve(limit)
  local composite, primes = {}, {}
  for i = 2, limit do
    if not composite[i] then
      primes[#primes + 1] = i
      for j = i * i, limit, i do composite[j] = true end
    end
  end
  return primes
end
local primes = sieve(5000)
print(#primes, primes[#primes])

local numbers = coroutine.wrap(function()
  local a, b = 0, 1
  while true do coroutine.yield(a); a, b = b, a + b end
end)
for _ = 1, 20 do io.write(numbers(), " ") end
print()

local words = {}
for word in ("the river sings under the old stone house by the river"):gmatch("%a+") do
  words[word] = (words[word] or 0) + 1
end
local keys = {}
for key in pairs(words) do keys[#keys + 1] = key end
table.sort(keys)
for _, key in ipairs(keys) do print(key, words[key]) end

local Point = {}
Point.__index = Point
Point.__add = function(a, b) return setmetatable({ x = a.x + b.x }, Point) end
local p = setmetatable({ x = 1.5 }, Point)
for _ = 1, 1000 do p = p + setmetatable({ x = 0.25 }, Point) end
print(string.format("%.3f %q %5d %x", p.x, "line\n", 42, 255))
print(pcall(function() return nil + 1 end))
print(7 // 2, 7 % -3, 2 ^ 0.5, 1 << 62, math.maxinteger + 1 == math.mininteger)
print(select("#", table.unpack({}, 1, 50)), ("x"):rep(10, "-"))
