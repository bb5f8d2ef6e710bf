-- Delete a turn, the index entries that still name it, and its event log (STATE-4).
-- KEYS: turn. ARGV: prefix, turn id.
local prefix, id = ARGV[1], ARGV[2]
local packed = redis.call('HGET', KEYS[1], 'i')
redis.call('DEL', prefix .. 'log:' .. id)
if not packed then return 0 end
for _, item in ipairs(cmsgpack.unpack(packed)) do
  local entry = prefix .. 'item:' .. item
  if redis.call('GET', entry) == id then redis.call('DEL', entry) end
end
return redis.call('DEL', KEYS[1])
