"""moto_server, one request at a time.

moto looks whether a key exists and writes it in two steps, and serves each connection by a thread: of racing conditional creates two may
win. On a busy machine that is rare; with threads that change every microsecond (sys.setswitchinterval) 6 races of 300 had two winners,
and none of them so. AWS decides one by one, and so does this.
"""

import threading

from moto import server

run_simple, turn = server.run_simple, threading.Lock()


def one_by_one(host, port, app, **options):
    def served(environ, start_response):
        with turn:
            return list(app(environ, start_response))

    run_simple(host, port, served, **options)


server.run_simple = one_by_one
server.main()
