-- The messages ARGV[3...] of the stream KEYS[1] are done with, for group ARGV[1]: out of the group and out of
-- the stream, which would grow for ever. With ARGV[2] = 'again' they are added anew first, for others.
if ARGV[2] == 'again' then
    for number = 3, #ARGV do
        local entry = redis.call('XRANGE', KEYS[1], ARGV[number], ARGV[number])[1]
        if entry then
            redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
        end
    end
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
redis.call('XDEL', KEYS[1], unpack(ARGV, 3))
return #ARGV - 2
