# An application for gunicorn: says how much it was sent.
def app(environ, start_response):
    size = len(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == "/unread":
        start_response("401 Unauthorized", [("Content-Length", "0"), ("WWW-Authenticate", "Basic realm=r")])
        return []
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Server", "gunicorn")])
    return [b"%s " % environ["REQUEST_METHOD"].encode(), b"%d\n" % size]
