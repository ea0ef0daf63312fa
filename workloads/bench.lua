-- Calls, tables, strings, closures and floats, in about equal parts. Prints checksums.
local rounds = tonumber(arg[1]) or 1

local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end

local function bodies(steps)
  local list = {}
  for i = 1, 5 do
    list[i] = { x = i * 1.7, y = (i % 3) * 0.9, z = i * 0.3, vx = 0, vy = i * 0.01, vz = 0, mass = 1 / i }
  end
  for _ = 1, steps do
    for i = 1, #list do
      local a = list[i]
      for j = i + 1, #list do
        local b = list[j]
        local dx, dy, dz = a.x - b.x, a.y - b.y, a.z - b.z
        local d2 = dx * dx + dy * dy + dz * dz + 0.01
        local f = 0.001 / (d2 * d2 ^ 0.5)
        a.vx = a.vx - dx * b.mass * f; b.vx = b.vx + dx * a.mass * f
        a.vy = a.vy - dy * b.mass * f; b.vy = b.vy + dy * a.mass * f
        a.vz = a.vz - dz * b.mass * f; b.vz = b.vz + dz * a.mass * f
      end
    end
    for _, a in ipairs(list) do a.x = a.x + a.vx; a.y = a.y + a.vy; a.z = a.z + a.vz end
  end
  return list[1].x
end

local function queens(n)
  local count, columns, up, down = 0, {}, {}, {}
  local function place(row)
    if row > n then count = count + 1 return end
    for c = 1, n do
      if not (columns[c] or up[row + c] or down[row - c]) then
        columns[c], up[row + c], down[row - c] = true, true, true
        place(row + 1)
        columns[c], up[row + c], down[row - c] = nil, nil, nil
      end
    end
  end
  place(1)
  return count
end

local function words(n)
  local parts, seen = {}, {}
  for i = 1, n do parts[#parts + 1] = string.format("%x", i * 7919 % 65537) end
  local text = table.concat(parts, " ")
  for word in text:gmatch("%w+") do seen[word] = (seen[word] or 0) + 1 end
  local keys = {}
  for key in pairs(seen) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return a > b end)
  return #keys, keys[1], #text:gsub("a%d", "<>")
end

for _ = 1, rounds do
  print(fib(24), string.format("%.9f", bodies(4000)), queens(7), words(15000))
end
