"""A service with a thread for each connection, which also makes the calls; parallel ones are a pool's.

Its sockets are blocking ones: none has a timeout.
"""
from concurrent.futures import ThreadPoolExecutor

import chain


def run(function, *arguments):
    return function(*arguments)


service = chain.Service(chain.options())
chain.end_when_told()
server = chain.Server(service, run, ThreadPoolExecutor(chain.FAN).map, later=run)
chain.announce(server.server_port)
service.start_cron()
server.serve_forever()
