-- The messages ARGV[3...] of the stream KEYS[1] are done with, for group ARGV[1]: out of the group and out of
-- the stream, which would grow for ever. With ARGV[2] = 'again' they are added anew first, for others.
for number = 3, #ARGV do
    local id = ARGV[number]
    if ARGV[2] == 'again' then
        local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
        if entry then
            redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
        end
    end
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
end
return #ARGV - 2
