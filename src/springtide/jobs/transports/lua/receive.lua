-- Up to ARGV[3] new messages of the streams KEYS, in their order, for consumer ARGV[2] of group ARGV[1].
-- A stream or a group that is not there is made: a group has all messages of its stream from the first on.
-- Returns pairs of a stream's number and its entries.
local left, found = tonumber(ARGV[3]), {}
for number, key in ipairs(KEYS) do
    local got = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>')
    if got and got.err then
        if string.sub(got.err, 1, 7) ~= 'NOGROUP' then
            return got
        end
        redis.call('XGROUP', 'CREATE', key, ARGV[1], '0', 'MKSTREAM')
        got = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>')
    end
    if got then
        found[#found + 1] = {number, got[1][2]}
        left = left - #got[1][2]
        if left <= 0 then
            break
        end
    end
end
return found
