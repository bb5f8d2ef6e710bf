-- Append blocks to a turn's event log. KEYS: log. ARGV: ttl in ms, hint, end (0, 1), the mark of a
-- deleted turn, which gets no log any more, then the last sequence number and the sealed bytes of
-- each block.
-- An entry's id is made of the sequence number, so that a block that comes twice, from a repeated
-- command or from a worker that lost its claim, is dropped. Fields: d sealed bytes, e end.
local key, finish = KEYS[1], ARGV[3] == '1'
if redis.call('EXISTS', ARGV[4]) == 1 then return 0 end
local top = 0
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last then
  local fields = last[2]
  if fields[#fields - 1] == 'e' then return 0 end
  top = tonumber(string.match(last[1], '^%d+'))
end
local marked = false
for n = 5, #ARGV, 2 do
  local place = ARGV[n] + 1
  if place > top then
    top = place
    local id = string.format('%.0f-0', top)
    marked = finish and n + 2 > #ARGV
    if marked then
      redis.call('XADD', key, id, 'd', ARGV[n + 1], 'e', '1')
    else
      redis.call('XADD', key, id, 'd', ARGV[n + 1])
    end
  end
end
if finish and not marked then redis.call('XADD', key, string.format('%.0f-1', top), 'e', '1') end
redis.call('PEXPIRE', key, ARGV[1])
redis.call('PUBLISH', 'gw:wake', ARGV[2])
return 1
