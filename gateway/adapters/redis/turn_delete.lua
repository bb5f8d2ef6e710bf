-- Delete a turn, the index entries that still name it, and its event log (STATE-4).
-- A worker may be about to write it again: the mark keeps it from that for as long as the turn
-- would have been kept.
-- KEYS: turn. ARGV: prefix, turn id.
local prefix, id = ARGV[1], ARGV[2]
local packed = redis.call('HGET', KEYS[1], 'i')
redis.call('DEL', prefix .. 'log:' .. id)
if not packed then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('SET', prefix .. 'gone:' .. id, '', 'PX', left) end
for _, item in ipairs(cmsgpack.unpack(packed)) do
  local entry = prefix .. 'item:' .. item
  if redis.call('GET', entry) == id then redis.call('DEL', entry) end
end
return redis.call('DEL', KEYS[1])
