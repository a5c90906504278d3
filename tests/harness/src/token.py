"""A token server as registries name them in WWW-Authenticate: `token.py DIRECTORY ADDRESS`.

Its tokens are signed with token.key and carry token.crt, which the registry's authority has signed.
Who gives no password may pull from `public/`; who gives the right one may do everything. Every
request is a line in `requests`.
"""

import base64, http.server, json, pathlib, ssl, subprocess, sys, time, urllib.parse

directory, address = pathlib.Path(sys.argv[1]), sys.argv[2]
PASSWORD = "Basic " + base64.b64encode(b"user:a secret").decode()


def word(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(claims):
    pem = (directory / "token.crt").read_text()
    head = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(pem.split("\n")[1:-2])]}
    text = b".".join(word(json.dumps(part).encode()) for part in (head, claims))
    command = ["openssl", "dgst", "-sha256", "-sign", directory / "token.key"]
    return text + b"." + word(subprocess.run(command, input=text, stdout=-1, check=True).stdout)


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        given = self.headers.get("Authorization")
        scope = query.get("scope", [""])[0]
        with open(directory / "requests", "a") as log:
            log.write(f"{scope} {'user' if given else 'nobody'}\n")
        if given not in (None, PASSWORD):
            return self.answer(401, {"errors": [{"code": "UNAUTHORIZED"}]})
        access = []
        if scope:
            kind, name, actions = scope.split(":")
            allowed = actions.split(",")
            if not given:
                allowed = ["pull"] if name.startswith("public/") else []
            access = [{"type": kind, "name": name, "actions": allowed}]
        now = int(time.time())
        claims = {"iss": "test", "aud": query["service"][0], "sub": "user", "jti": str(now)}
        claims |= {"iat": now, "nbf": now - 10, "exp": now + 300, "access": access}
        self.answer(200, {"token": sign(claims).decode()})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


host, port = address.split(":")
server = http.server.ThreadingHTTPServer((host, int(port)), Answers)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(directory / "server.crt", directory / "server.key")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
