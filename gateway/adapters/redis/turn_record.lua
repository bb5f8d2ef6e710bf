-- Write a turn and the index of its items; a repeat writes the same again.
-- KEYS: turn. ARGV: prefix, turn id, ttl in ms, parent, head, items, response, hint,
-- item ids as MessagePack, '1' if the turn must be new; and where the writer holds a claim: the
-- batch and the fence, without which nothing is written.
-- Returns 0 where the id is another turn's, or the claim lost; -1 where the turn was deleted.
-- HSET comes first: a full server refuses it, and then nothing was written.
local key, prefix, id, ttl = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local packed = ARGV[9]
local items = cmsgpack.unpack(packed)
if redis.call('EXISTS', prefix .. 'gone:' .. id) == 1 then return -1 end
if ARGV[11] then
  local batch = redis.call('HMGET', prefix .. 'batch:' .. ARGV[11], 's', 'f')
  local held = batch[1] == 'claimed' or batch[1] == 'dispatched'
  if not held or batch[2] ~= ARGV[12] then return 0 end
end
if ARGV[10] == '1' then
  local head = redis.call('HGET', key, 'h')
  if head and head ~= ARGV[5] then return 0 end
end
local old = redis.call('HGET', key, 'i')
redis.call('HSET', key, 'p', ARGV[4], 'h', ARGV[5], 'c', ARGV[6], 'r', ARGV[7], 'i', packed)
redis.call('PEXPIRE', key, ttl)
for _, item in ipairs(items) do
  local entry, turn = prefix .. 'item:' .. item, id
  -- What an item says ('=' and a token) may be said in two turns: then it tells nothing.
  if string.sub(item, 1, 1) == '=' and (redis.call('GET', entry) or id) ~= id then turn = '' end
  redis.call('SET', entry, turn, 'PX', ttl)
end
if not old then
  local recent = prefix .. 'turns'
  redis.call('XADD', recent, 'MAXLEN', '~', 5000, '*', 'i', id)
  if redis.call('PTTL', recent) < tonumber(ttl) then redis.call('PEXPIRE', recent, ttl) end
end
if old then
  if old ~= packed then
    local kept = {}
    for _, item in ipairs(items) do kept[item] = true end
    for _, item in ipairs(cmsgpack.unpack(old)) do
      local entry = prefix .. 'item:' .. item
      if not kept[item] and redis.call('GET', entry) == id then redis.call('DEL', entry) end
    end
  end
  -- Nobody waits for a turn that is new; a changed one may have its readers.
  redis.call('PUBLISH', 'gw:wake', ARGV[8])
end
return 1
