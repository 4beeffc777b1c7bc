#!/usr/bin/python3
"""A TCP proxy for benchmarks: a link with a round trip, or the TLS end of a server that speaks none.

    slow_proxy.py --listen PORT --to PORT [--round-trip-ms 20]
    slow_proxy.py --listen PORT --to PORT --cert FILE --key FILE

Every byte arrives half a round trip later than it was sent, and bytes follow each other on the way as on a real link: the first byte
of an answer comes one round trip late, the rest right behind it. A new connection costs one round trip before its first byte. What
a real link has beside that isn't here: no limit of bandwidth, no slow start, no loss.
"""
import argparse
import asyncio
import ssl

CHUNK = 256 * 1024
# What may be under way in one direction: enough for 500 MB/s at half of 20 ms, and a bound.
WINDOW = 32


async def pump(reader, writer, delay):
    clock = asyncio.get_running_loop().time
    under_way = asyncio.Queue(WINDOW)

    async def arrive():
        while True:
            due, chunk = await under_way.get()
            if due > clock():
                await asyncio.sleep(due - clock())
            if not chunk:
                if writer.can_write_eof():
                    writer.write_eof()
                else:
                    writer.close()
                return
            writer.write(chunk)
            await writer.drain()

    async def depart():
        chunk = b"more"
        while chunk:
            chunk = await reader.read(CHUNK)
            await under_way.put((clock() + delay, chunk))

    await asyncio.gather(arrive(), depart())


async def serve(options):
    delay = options.round_trip_ms / 2000
    secure = None
    if options.cert:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(options.cert, options.key)

    async def meet(reader, writer):
        onward = None
        try:
            await asyncio.sleep(2 * delay)
            back, onward = await asyncio.open_connection("127.0.0.1", options.to, limit=CHUNK)
            await asyncio.gather(pump(reader, onward, delay), pump(back, writer, delay))
        except OSError:
            pass  # either side hung up: the other one is told by the closing below
        finally:
            writer.close()
            if onward:
                onward.close()

    server = await asyncio.start_server(meet, "127.0.0.1", options.listen, ssl=secure, limit=CHUNK, backlog=256)
    async with server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--round-trip-ms", type=float, default=0)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
