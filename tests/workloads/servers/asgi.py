"""A server over HTTP/1.1 that takes the offer to go on in HTTP/2 (hypercorn): python -m hypercorn asgi:app"""


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    received, more = 0, True
    while more:
        message = await receive()
        received += len(message.get("body", b""))
        more = message.get("more_body", False)
    status = 200 if scope["path"].startswith("/file") else 404
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * (1000 + received)})
