# An application for uvicorn: echoes a request's body in pieces, and WebSockets.
import asyncio


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            if (event.get("text") or "").startswith("close "):
                return await send({"type": "websocket.close", "code": int(event["text"].split()[1])})
            await send({"type": "websocket.send", **{k: event[k] for k in ("text", "bytes") if event.get(k) is not None}})
        return
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        event = await receive()
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-server", b"uvicorn")]})
    for i in range(3):
        await send({"type": "http.response.body", "body": b"piece %d of %d\n" % (i, size), "more_body": True})
        if scope["path"] == "/slow":
            await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": b""})
