-- Tool pins: one hash per server, `v` its version and `d` the sealed record (MCP-5).
--
--   KEYS[1]  any key of the tenant, for routing
--   ARGV[1]  operation; the rest are its arguments
--
--   read   key, known version, key, known version, …
--          -> time in milliseconds, then per key its version and its record; the record is
--             false where the known version is still the one
--   write  key, version that was read, sealed record -> 1 written, 0 another was faster

local function version_of(key)
  return tonumber(redis.call('HGET', key, 'v') or '0')
end

local operations = {}

function operations.read()
  local time = redis.call('TIME')
  local found = {time[1] * 1000 + math.floor(time[2] / 1000)}
  for place = 2, #ARGV, 2 do
    local version = version_of(ARGV[place])
    found[#found + 1] = version
    if version == tonumber(ARGV[place + 1]) then
      found[#found + 1] = false
    else
      found[#found + 1] = redis.call('HGET', ARGV[place], 'd')
    end
  end
  return found
end

function operations.write()
  local key, version, record = ARGV[2], tonumber(ARGV[3]), ARGV[4]
  if version_of(key) ~= version then
    -- The same record once more is a repeat of a lost answer, and was written.
    return redis.call('HGET', key, 'd') == record and 1 or 0
  end
  redis.call('HSET', key, 'v', version + 1, 'd', record)
  return 1
end

return operations[ARGV[1]]()
