#!/usr/bin/env python3
"""STAND-IN for what runs in Harbor's containers: prepare, log, proxy and core (see README.md)."""

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import secrets
import select
import shutil
import socket
import socketserver
import ssl
import sys
import threading
import time
import urllib.parse
from pathlib import Path

CONFIG, DATA, STATE = Path("/config"), Path("/data"), Path("/data/core.json")
VALID_NAME = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
SECRET_RULE = r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9]).{8,128}"
ACTIONS = ("read", "update", "delete", "list", "pull", "push")


# --- prepare


def compose(config, version):
    """The vendor's compose file, for four of its services."""
    syslog = {"driver": "syslog", "options": {"syslog-address": "tcp://localhost:1514"}}
    log = config["log"]["local"]["location"]
    data = config["data_volume"]

    def service(image, name, volumes, **more):
        usual = {
            "image": f"goharbor/{image}:{version}",
            "container_name": name,
            "restart": "always",
            "cap_drop": ["ALL"],
            "cap_add": ["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"],
            "volumes": volumes,
            "networks": ["harbor"],
        }
        if name != "harbor-log":
            options = syslog["options"] | {"tag": name}
            usual["logging"] = {"driver": "syslog", "options": options}
        return usual | more

    return {
        "services": {
            "log": service(
                "harbor-log",
                "harbor-log",
                [f"{log}/:/var/log/docker/:z"],
                ports=["127.0.0.1:1514:10514"],
            ),
            "registry": service(
                "registry-photon",
                "registry",
                [f"{data}/registry:/storage:z", "./common/config/registry/:/etc/registry/:z"],
                depends_on=["log"],
            ),
            "core": service(
                "harbor-core",
                "harbor-core",
                [f"{data}/:/data/:z"],
                env_file=["./common/config/core/env"],
                depends_on=["log", "registry"],
            ),
            "proxy": service(
                "nginx-photon",
                "nginx",
                [f"{data}/secret/cert:/etc/cert:z"],
                ports=[f"{config['http']['port']}:8080", f"{config['https']['port']}:8443"],
                depends_on=["registry", "core", "log"],
            ),
        },
        "networks": {"harbor": {"external": False}},
    }


def prepare():
    """Write the configuration anew. As the real one, it first removes what is there."""
    import yaml

    print("STAND-IN for goharbor/prepare")
    for path in CONFIG.rglob("*"):
        if path.is_file():
            print(f"Clearing the configuration file: {path}")
            path.unlink()
    config = yaml.safe_load(Path("/input/harbor.yml").read_text())
    version = os.environ["HARBOR_VERSION"]
    if config["hostname"] in ("127.0.0.1", "reg.mydomain.com"):
        raise SystemExit("Error happened in config validation...")
    # The real one reads these without a default.
    for key in ("max_job_workers", "job_loggers", "logger_sweeper_duration"):
        config["jobservice"][key]
    for key in ("webhook_job_max_retry", "webhook_job_http_client_timeout"):
        config["notification"][key]
    assert config["log"]["level"] in ("debug", "info", "warning", "error", "fatal")
    assert config["_version"] == re.sub(r"v(\d+\.\d+)\..*", r"\1.0", version)
    for name in ("registry", "database", "secret/core", "secret/keys"):
        (DATA / name).mkdir(parents=True, exist_ok=True)
    (CONFIG / "registry").mkdir(parents=True, exist_ok=True)
    (CONFIG / "registry/config.yml").write_text(
        "version: 0.1\n"
        "storage: {filesystem: {rootdirectory: /storage}, delete: {enabled: true}}\n"
        "http: {addr: ':5000', relativeurls: true}\n"
    )
    while Path("/hostfs/run/stand-in-stalls").exists():
        time.sleep(0.2)
    cert = DATA / "secret/cert"
    shutil.rmtree(cert, ignore_errors=True)
    cert.mkdir(parents=True)
    shutil.copy("/hostfs" + config["https"]["private_key"], cert / "server.key")
    shutil.copy("/hostfs" + config["https"]["certificate"], cert / "server.crt")
    (CONFIG / "core").mkdir(parents=True, exist_ok=True)
    env = CONFIG / "core/env"
    env.touch(0o640)
    env.write_text(
        f"HARBOR_ADMIN_PASSWORD={config['harbor_admin_password']}\n"
        f"POSTGRESQL_PASSWORD={config['database']['password']}\n"
        f"EXT_ENDPOINT=https://{config['hostname']}:{config['https']['port']}\n"
    )
    text = yaml.safe_dump(compose(config, version))
    Path("/compose_location/docker-compose.yml").write_text(text)
    print("Generated configuration file: /compose_location/docker-compose.yml")


# --- log and proxy


class Log(socketserver.StreamRequestHandler):
    """Takes lines of the engine's log driver."""

    def handle(self):
        """Write them down."""
        with Path("/var/log/docker/harbor.log").open("ab", buffering=0) as log:
            for line in self.rfile:
                log.write(line)


class Threads(socketserver.ThreadingTCPServer):
    """One thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True


class Redirect(http.server.BaseHTTPRequestHandler):
    """Sends everybody to HTTPS."""

    def do_GET(self):
        """As nginx.https.conf."""
        self.send_response(308)
        self.send_header("Location", f"https://{self.headers['Host']}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()


class Proxy(socketserver.BaseRequestHandler):
    """Ends TLS."""

    def handle(self):
        """Pass the connection on to core."""
        try:
            client = TLS.wrap_socket(self.request, server_side=True)
            core = socket.create_connection(("core", 8080))
        except OSError:
            return
        with client, core:
            other = {client: core, core: client}
            while True:
                ready = [client] if client.pending() else select.select([*other], [], [])[0]
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    other[end].sendall(data)


# --- core


class RefusedError(Exception):
    """An answer other than success."""

    def __init__(self, status, code, message, **headers):
        """Status, Harbor's code, its message, more headers."""
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def hashed(text, salt=""):
    """What is stored of a password."""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 1000).hex()


class Store:
    """What Harbor keeps in its database."""

    def __init__(self):
        """Read at start; the very first start takes the passwords of the environment."""
        self.lock = threading.RLock()
        mark = DATA / "database/password"
        wanted = hashed(os.environ["POSTGRESQL_PASSWORD"])
        if not mark.exists():
            mark.write_text(wanted)
        self.healthy = mark.read_text() == wanted
        if STATE.exists():
            self.state = json.loads(STATE.read_text())
        else:
            self.state = {
                "admin": hashed(os.environ["HARBOR_ADMIN_PASSWORD"]),
                "prefix": "robot$",
                "projects": [{"project_id": 1, "name": "library", "metadata": {"public": "true"}}],
                "robots": [],
                "key": secrets.token_hex(),
                "last": 1,
            }
            self.save()
        self.frozen = 0.0

    def save(self):
        """Write the state."""
        partial = STATE.with_suffix(".part")
        partial.touch(0o600)
        partial.write_text(json.dumps(self.state))
        partial.replace(STATE)

    def number(self):
        """A new id."""
        self.state["last"] += 1
        return self.state["last"]

    def project(self, name):
        """The project of this name or None."""
        return next((one for one in self.state["projects"] if one["name"] == name), None)

    def robot(self, number):
        """The robot of this id."""
        for one in self.state["robots"]:
            if one["id"] == number:
                return one
        raise RefusedError(404, "NOT_FOUND", f"robot {number} not found")

    def login(self, name, password):
        """Who this is: ("admin" or the robot's stored record) or None."""
        prefix = self.state["prefix"]
        if name.startswith(prefix):
            for one in self.state["robots"]:
                if one["name"] == name[len(prefix) :] and not one["disable"]:
                    right = hmac.compare_digest(one["secret"], hashed(password, one["salt"]))
                    return one if right else None
            return None
        if name != "admin" or time.monotonic() < self.frozen:
            return None
        if hmac.compare_digest(self.state["admin"], hashed(password)):
            return "admin"
        self.frozen = time.monotonic() + 1.5
        time.sleep(1.5)
        return None

    def may(self, who, action, repository):
        """Whether somebody may do this to a repository."""
        project = self.project(repository.split("/")[0])
        if project is None:
            raise RefusedError(401, "UNAUTHORIZED", f"project {repository.split('/')[0]} not found")
        if who == "admin":
            return True
        if action == "pull" and project["metadata"]["public"] == "true":
            return True
        if who is None:
            return False
        return any(
            scope["kind"] == "project"
            and scope["namespace"] in (project["name"], "*")
            and {"resource": "repository", "action": action} in scope["access"]
            for scope in who["permissions"]
        )

    def shown(self, robot):
        """A robot as the API shows it: prefix, no secret."""
        hidden = ("secret", "salt")
        shown = {key: value for key, value in robot.items() if key not in hidden}
        return shown | {"name": self.state["prefix"] + robot["name"], "editable": True}


class Core(http.server.BaseHTTPRequestHandler):
    """Harbor's API, its token service, and the way to the registry."""

    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *arguments):
        """To the log container, without what was sent."""
        print(f"STAND-IN core: {self.command} {self.path}", flush=True)

    def answer(self, status, content=None, **headers):
        """Send JSON, or nothing."""
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if body:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self):
        """One request."""
        self.url = urllib.parse.urlsplit(self.path)
        self.query = {key: one[0] for key, one in urllib.parse.parse_qs(self.url.query).items()}
        try:
            if not self.store.healthy and not self.url.path.endswith("/health"):
                raise RefusedError(
                    500, "UNKNOWN", "password authentication failed for user postgres"
                )
            if self.url.path.startswith("/v2/"):
                self.registry()
            elif self.url.path == "/service/token":
                self.token()
            elif self.url.path.startswith("/api/v2.0/"):
                with self.store.lock:
                    self.api(self.url.path.removeprefix("/api/v2.0"))
            else:
                raise RefusedError(404, "NOT_FOUND", "no such page")
        except RefusedError as refused:
            # What was not read of the request would be taken for the next one.
            self.close_connection = True
            errors = {"errors": [{"code": refused.code, "message": str(refused)}]}
            self.answer(refused.status, errors, **refused.headers)

    def do_GET(self):
        """See serve()."""
        self.serve()

    def do_HEAD(self):
        """See serve()."""
        self.serve()

    def do_POST(self):
        """See serve()."""
        self.serve()

    def do_PUT(self):
        """See serve()."""
        self.serve()

    def do_PATCH(self):
        """See serve()."""
        self.serve()

    def do_DELETE(self):
        """See serve()."""
        self.serve()

    # who is asking

    def basic(self):
        """Name and password of the request or None."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind != "Basic":
            return None
        name, _, password = base64.b64decode(value).decode().partition(":")
        return name, password

    def who(self):
        """Who is asking, or None."""
        given = self.basic()
        return self.store.login(*given) if given else None

    def signed(self, content):
        """A token, or its signature."""
        key = self.store.state["key"].encode()
        return hmac.new(key, content, hashlib.sha256).hexdigest()

    # the API

    def api(self, path):
        """Dispatch."""
        who, body = self.who(), {}
        if length := int(self.headers.get("Content-Length") or 0):
            body = json.loads(self.rfile.read(length))
        if path == "/health":
            return self.health()
        if path == "/systeminfo":
            version = f"{os.environ['HARBOR_VERSION']}-standin"
            return self.answer(
                200, {"harbor_version": version} if who else {"auth_mode": "db_auth"}
            )
        if who is None:
            raise RefusedError(401, "UNAUTHORIZED", "unauthorized")
        if path == "/users/current":
            if who != "admin":
                raise RefusedError(412, "PRECONDITION", "not available for security context: robot")
            return self.answer(200, {"user_id": 1, "username": "admin", "sysadmin_flag": True})
        if who != "admin":
            raise RefusedError(403, "FORBIDDEN", "forbidden")
        for pattern, handler in (
            (r"/users/1/password", self.password),
            (r"/configurations", self.configurations),
            (r"/projects", self.projects),
            (rf"/projects/({VALID_NAME})", self.one_project),
            (r"/robots", self.robots),
            (r"/robots/([0-9]+)", self.one_robot),
        ):
            if found := re.fullmatch(pattern, path):
                return handler(body, *found.groups())
        raise RefusedError(404, "NOT_FOUND", f"path {path} was not found")

    def health(self):
        """State of the parts."""
        parts = {"core": True, "database": self.store.healthy}
        try:
            socket.create_connection(("registry", 5000), 2).close()
            parts["registry"] = True
        except OSError:
            parts["registry"] = False
        words = {True: "healthy", False: "unhealthy"}
        components = [{"name": name, "status": words[well]} for name, well in parts.items()]
        self.answer(200, {"status": words[all(parts.values())], "components": components})

    def password(self, body):
        """Of the administrator, who has to know the old one."""
        state = self.store.state
        if self.command != "PUT":
            raise RefusedError(405, "METHOD_NOT_ALLOWED", "method not allowed")
        if hashed(body.get("old_password", "")) != state["admin"]:
            raise RefusedError(403, "FORBIDDEN", "Current password is incorrect")
        if not re.fullmatch(SECRET_RULE, body["new_password"]):
            raise RefusedError(
                400, "BAD_REQUEST", "the password or secret must be 8-128, inclusively"
            )
        if hashed(body["new_password"]) == state["admin"]:
            raise RefusedError(400, "BAD_REQUEST", "New password is identical to old password")
        state["admin"] = hashed(body["new_password"])
        self.store.save()
        self.answer(200)

    def configurations(self, body):
        """The prefix of robots."""
        if self.command == "PUT":
            self.store.state["prefix"] = body["robot_name_prefix"]
            self.store.save()
            return self.answer(200)
        prefix = {"value": self.store.state["prefix"], "editable": True}
        return self.answer(200, {"robot_name_prefix": prefix})

    def projects(self, body):
        """Look for one by its name, or create it."""
        if self.command == "HEAD":
            found = self.store.project(self.query["project_name"])
            return self.answer(200 if found else 404)
        if self.command != "POST":
            return self.answer(200, self.store.state["projects"])
        name = body["project_name"]
        if self.store.project(name):
            raise RefusedError(409, "CONFLICT", f"The project named {name} already exists")
        metadata = {"public": "false"} | body.get("metadata", {})
        new = {"project_id": self.store.number(), "name": name, "metadata": metadata}
        self.store.state["projects"].append(new)
        self.store.save()
        return self.answer(201, Location=f"/api/v2.0/projects/{new['project_id']}")

    def one_project(self, body, name):
        """Show or change it."""
        found = self.store.project(name)
        if found is None:
            raise RefusedError(
                403 if self.command == "PUT" else 404, "NOT_FOUND", f"project {name} not found"
            )
        if self.command == "PUT":
            found["metadata"] |= body["metadata"]
            self.store.save()
            return self.answer(200)
        return self.answer(200, found)

    def checked(self, body):
        """Refuse a robot that Harbor would refuse."""
        if body["level"] not in ("system", "project"):
            raise RefusedError(
                400, "BAD_REQUEST", f"bad request error level input: {body['level']}"
            )
        if body["duration"] != -1 and body["duration"] <= 0:
            raise RefusedError(400, "BAD_REQUEST", "bad request error duration input")
        if not body["permissions"] or not all(one["access"] for one in body["permissions"]):
            raise RefusedError(400, "BAD_REQUEST", "bad request empty permission")
        for scope in body["permissions"]:
            if scope["kind"] != "project" or self.store.project(scope["namespace"]) is None:
                raise RefusedError(404, "NOT_FOUND", f"project {scope['namespace']} not found")
            for one in scope["access"]:
                if one["resource"] != "repository" or one["action"] not in ACTIONS:
                    raise RefusedError(400, "BAD_REQUEST", f"bad request permission: {one}")

    def robots(self, body):
        """Those of the system, or a new one. Its secret is made here and shown once."""
        robots = self.store.state["robots"]
        if self.command == "GET":
            key, _, value = self.query.get("q", "name=").partition("=")
            assert key == "name", "not in this stand-in"
            found = [one for one in robots if value in ("", one["name"])]
            return self.answer(200, [self.store.shown(one) for one in found])
        if not re.fullmatch(VALID_NAME, body["name"]):
            raise RefusedError(
                400, "BAD_REQUEST", "robot name is not in lower case or contains illegal characters"
            )
        self.checked(body)
        if any(one["name"] == body["name"] for one in robots):
            raise RefusedError(409, "CONFLICT", f"robot account {body['name']} already exists")
        secret, salt = f"Aa1{secrets.token_hex(14)}", secrets.token_hex(8)
        new = {
            "id": self.store.number(),
            "name": body["name"],
            "description": body.get("description", ""),
            "level": body["level"],
            "duration": body["duration"],
            "expires_at": -1
            if body["duration"] == -1
            else int(time.time()) + 86400 * body["duration"],
            "disable": False,
            "permissions": body["permissions"],
            "salt": salt,
            "secret": hashed(secret, salt),
        }
        robots.append(new)
        self.store.save()
        shown = self.store.shown(new)
        content = {
            "id": new["id"],
            "name": shown["name"],
            "secret": secret,
            "expires_at": new["expires_at"],
        }
        return self.answer(201, content, Location=f"/api/v2.0/robots/{new['id']}")

    def one_robot(self, body, number):
        """Show, change, delete it, or set its secret."""
        found = self.store.robot(int(number))
        shown = self.store.shown(found)
        content = shown if self.command == "GET" else None
        if self.command == "PUT":
            self.checked(body)
            if body["level"] != found["level"] or body["name"] != shown["name"]:
                raise RefusedError(400, "BAD_REQUEST", "cannot update the level or name of robot")
            found |= {
                key: body[key] for key in ("disable", "permissions", "duration", "description")
            }
            found["expires_at"] = -1 if body["duration"] == -1 else found["expires_at"]
        elif self.command == "PATCH":
            secret = body.get("secret", "")
            if secret and not re.fullmatch(SECRET_RULE, secret):
                raise RefusedError(
                    400, "BAD_REQUEST", "the secret must be 8-128, inclusively, characters long"
                )
            made = secret or f"Aa1{secrets.token_hex(14)}"
            found["secret"] = hashed(made, found["salt"])
            content = {} if secret else {"secret": made}
        elif self.command == "DELETE":
            self.store.state["robots"].remove(found)
        self.store.save()
        self.answer(200, content)

    # the registry

    def token(self):
        """A bearer token with as much of the scopes as this user has."""
        given, who = self.basic(), self.who()
        scopes = urllib.parse.parse_qs(self.url.query).get("scope", [])
        if who is None and (given or not scopes):
            raise RefusedError(401, "UNAUTHORIZED", "unauthorized")
        access = {}
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "repository" and self.store.project(name.split("/")[0]):
                wanted = actions.split(",")
                access[name] = [one for one in wanted if self.store.may(who, one, name)]
        content = {"login": who is not None, "access": access, "until": time.time() + 1800}
        text = base64.urlsafe_b64encode(json.dumps(content).encode())
        token = f"{text.decode()}.{self.signed(text)}"
        self.answer(200, {"token": token, "expires_in": 1800})

    def bearer(self):
        """What the token allows, or None."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        text, _, signature = value.partition(".")
        if kind != "Bearer" or not hmac.compare_digest(self.signed(text.encode()), signature):
            return None
        content = json.loads(base64.urlsafe_b64decode(text))
        return content if content["until"] > time.time() else None

    def registry(self):
        """Check the rights, then pass on. As src/server/middleware/v2auth."""
        path = self.url.path
        found = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.*", path)
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        who, token = self.who(), self.bearer()
        scope = f',scope="repository:{found[1]}:{action}"' if found else ""
        realm = f'realm="https://{self.headers["Host"]}/service/token",service="harbor-registry"'
        realm = f"Bearer {realm}{scope}"
        challenge = 'Basic realm="harbor"' if self.headers.get("Authorization") else realm
        headers = {"Docker_Distribution_Api_Version": "registry/2.0", "Www_Authenticate": challenge}
        if found:
            allowed = action in token["access"].get(found[1], []) if token else None
            if allowed is None:
                allowed = self.store.may(who, action, found[1])
            if not allowed:
                text = f"unauthorized to access repository: {found[1]}, action: {action}"
                raise RefusedError(401, "UNAUTHORIZED", text, **headers)
        elif path != "/v2/" or not (who or (token and token["login"])):
            raise RefusedError(401, "UNAUTHORIZED", "unauthorized", **headers)
        self.forward()

    def sent(self):
        """The body of the request, piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            left -= len(piece)
            yield piece

    def forward(self):
        """To the registry and back."""
        own = ("authorization", "connection", "transfer-encoding")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in own}
        chunked = "Transfer-Encoding" in self.headers
        body = self.sent() if chunked or "Content-Length" in self.headers else None
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        upstream = http.client.HTTPConnection("registry", 5000)
        upstream.request(
            self.command,
            self.path,
            body,
            headers | {"X-Forwarded-Proto": "https"},
            encode_chunked=chunked,
        )
        reply = upstream.getresponse()
        self.send_response(reply.status)
        for key, value in reply.getheaders():
            if key.lower() not in ("connection", "transfer-encoding"):
                self.send_header(key, value)
        length = reply.getheader("Content-Length")
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            shutil.copyfileobj(reply, self.wfile)
        upstream.close()


if __name__ == "__main__":
    print(f"STAND-IN for Harbor's {sys.argv[1]}", flush=True)
    if sys.argv[1] == "prepare":
        prepare()
    elif sys.argv[1] == "log":
        Threads(("", 10514), Log).serve_forever()
    elif sys.argv[1] == "proxy":
        TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        TLS.load_cert_chain("/etc/cert/server.crt", "/etc/cert/server.key")
        redirect = http.server.ThreadingHTTPServer(("", 8080), Redirect)
        threading.Thread(target=redirect.serve_forever, daemon=True).start()
        Threads(("", 8443), Proxy).serve_forever()
    else:
        Core.store = Store()
        http.server.ThreadingHTTPServer(("", 8080), Core).serve_forever()
