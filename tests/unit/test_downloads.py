import contextlib
import gc
import hashlib
import http.server
import io
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jax_excite import WeightsError
from jax_excite.weights import downloads
from jax_excite.weights.downloads import cache_folder, download, locked

BODY = random.Random(0).randbytes(3_000_000)
HALF = len(BODY) // 2
DIGEST = hashlib.sha256(BODY).hexdigest()
PREFIX = DIGEST[:8]
PACKAGE = Path(downloads.__file__).parents[1]
# The package without its __init__, which takes seconds to import JAX.
BARE = f"""
import sys, types
sys.modules["jax_excite"] = types.ModuleType("jax_excite")
sys.modules["jax_excite"].__path__ = [{str(PACKAGE)!r}]
"""
CHILD = f"""{BARE}
import pathlib, signal
from jax_excite.weights.downloads import download, locked
signal.signal(signal.SIGINT, signal.default_int_handler)
url, path, prefix = sys.argv[1:]
with locked(pathlib.Path(path)):
    download(url, pathlib.Path(path), prefix)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.path.rpartition("/")[2].removesuffix(".pth")
        if page.isdigit():
            self.send_error(int(page))
        elif page == "moved":
            self.send_response(302)
            self.send_header("Location", self.server.moved_to)
            self.end_headers()
        elif page == "silent":
            self.server.go_on.wait(20)
        else:
            self.send_response(200)
            if page != "unsized":
                self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # from a client that was killed
                self.send_body(page)

    def send_body(self, page):
        self.wfile.write(BODY[:HALF])
        if page == "held":
            self.server.half_sent.set()
            self.server.go_on.wait(20)
        if page != "short":
            self.wfile.write(BODY[HALF:])

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.moved_to = "/weights.pth"
        self.asked = []
        self.half_sent = threading.Event()
        self.go_on = threading.Event()

    def url(self, page):
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{page}.pth"


@contextlib.contextmanager
def serving():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
    gc.collect(1)  # so that a socket left open is this test's failure


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "Zoë and her cache, 重み"
    folder.mkdir()
    return folder / "net-00000000.pth"


def there(path):
    """The names in the folder of `path`, without locks."""
    return [file.name for file in path.parent.iterdir() if file.suffix != ".lock"]


def refusal(url, path, prefix=PREFIX):
    """The message of a download that fails and leaves nothing; it must always say how to go on."""
    with pytest.raises(WeightsError) as caught:
        download(url, path, prefix)
    message = str(caught.value)
    assert there(path) == []
    assert "\n" not in message
    for part in (url, str(path), "weights=FILE", "--weights FILE"):
        assert part in message
    return message


@contextlib.contextmanager
def child(url, path):
    """A process that downloads."""
    command = [sys.executable, "-W", "error", "-c", CHILD, url, str(path), PREFIX]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        with process:
            yield process
    finally:
        process.kill()


def test_download(server, path, monkeypatch, capfd):
    monkeypatch.setattr(downloads, "LINE_EVERY", 0.0)
    download(server.url("weights"), path, PREFIX)
    assert path.read_bytes() == BODY
    assert there(path) == [path.name]
    out, err = capfd.readouterr()
    first, *lines = err.splitlines()
    assert out == ""
    assert first == f"Downloading {server.url('weights')} to {path}"
    assert len(lines) > 5
    assert lines[-1] == "3.0 of 3.0 MB"
    amounts = [float(line.removesuffix(" of 3.0 MB")) for line in lines]
    assert amounts == sorted(amounts)

    download(server.url("weights"), path, PREFIX)
    assert server.asked == ["/weights.pth"]
    assert capfd.readouterr() == ("", "")


def test_lines_of_progress_are_few(server, path, capsys):
    download(server.url("weights"), path, PREFIX)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_bar_on_a_terminal(server, path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    download(server.url("weights"), path, PREFIX)
    said = terminal.getvalue()
    assert said.startswith(f"Downloading {server.url('weights')} to {path}\n")
    assert "3.0/3.0 MB" in said
    assert said.endswith("\n\x1b[?25h")  # the bar is left standing, and the cursor shown again


def test_size_unknown(server, path, capsys):
    download(server.url("unsized"), path, PREFIX)
    assert path.read_bytes() == BODY
    assert " of " not in capsys.readouterr().err


def test_wrong_digest(server, path):
    message = refusal(server.url("weights"), path, "0badcafe")
    assert DIGEST in message
    assert "0badcafe" in message


def test_cut_short(server, path):
    assert "the download was interrupted" in refusal(server.url("short"), path)


@pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (500, "Internal Server Error")])
def test_status(server, path, status, phrase):
    message = refusal(server.url(str(status)), path)
    assert str(status) in message
    assert phrase in message


@pytest.mark.parametrize("page", ["silent", "held"])
def test_stall(server, path, page, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    assert "no data arrived for 0.2 s" in refusal(server.url(page), path)


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound, but nobody listens


def test_no_connection(path, closed_port):
    message = refusal(f"http://127.0.0.1:{closed_port}/net.pth", path)
    assert "Connection refused" in message
    assert "proxy" not in message


def test_no_connection_to_proxy(path, closed_port, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://somebody:secret@127.0.0.1:{closed_port}")
    message = refusal("http://weights.invalid/net.pth", path)
    assert f"through the proxy 127.0.0.1:{closed_port}." in message
    assert "secret" not in message
    assert "somebody" not in message


def test_through_proxy(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    download("http://weights.invalid/weights.pth", path, PREFIX)
    assert path.read_bytes() == BODY
    assert server.asked == ["http://weights.invalid/weights.pth"]


def test_credentials_are_not_shown(server, path, capsys):
    url = server.url("404").replace("//", "//somebody:secret@")
    with pytest.raises(WeightsError) as caught:
        download(url, path, PREFIX)
    for said in (str(caught.value), capsys.readouterr().err):
        assert f"127.0.0.1:{server.server_port}/404.pth" in said
        assert "secret" not in said


def test_no_certificates(path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/certificates.pem")
    message = refusal("https://weights.invalid/net.pth", path)
    assert "/nowhere/certificates.pem" in message


def test_redirect(server, path):
    download(server.url("moved"), path, PREFIX)
    assert path.read_bytes() == BODY


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
def test_no_redirect_away_from_tls(path, tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = "-x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    command = ["openssl", "req", *options.split(), "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving() as plain, serving() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        secure.scheme = "https"
        secure.moved_to = plain.url("weights")
        message = refusal(secure.url("moved"), path)
        assert f"redirects to {plain.url('weights')}, which does not use TLS" in message
        download(secure.url("weights"), path, PREFIX)
    assert path.read_bytes() == BODY


def test_put_there_by_hand(server, path, capsys):
    path.write_bytes(BODY)
    download(server.url("weights"), path, PREFIX)
    assert server.asked == []
    assert capsys.readouterr().err == ""


def test_wrong_file_put_there_by_hand(server, path):
    path.write_bytes(b"something else")
    with pytest.raises(WeightsError) as caught:
        download(server.url("weights"), path, PREFIX)
    for part in (str(path), PREFIX, hashlib.sha256(b"something else").hexdigest()):
        assert part in str(caught.value)
    assert path.read_bytes() == b"something else"
    assert server.asked == []


def test_killed_then_repeated(server, path):
    for _ in range(2):
        server.half_sent.clear()
        with child(server.url("held"), path) as process:
            assert server.half_sent.wait(20)
            process.kill()
        assert path.name not in there(path)
    assert len(there(path)) <= 1
    download(server.url("weights"), path, PREFIX)
    assert path.read_bytes() == BODY
    assert there(path) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_interrupted(server, path):
    with child(server.url("held"), path) as process:
        assert server.half_sent.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) in (-signal.SIGINT, 130)
        assert process.stderr.read().endswith("KeyboardInterrupt\n")
    assert there(path) == []


def test_two_processes_at_once(server, path):
    with child(server.url("held"), path) as one:
        assert server.half_sent.wait(20)
        with child(server.url("held"), path) as other:
            waiting = other.stderr.readline()
            assert waiting == f"Waiting for another process, which is writing {path}\n"
            server.go_on.set()
            assert one.wait(20) == 0
            assert other.wait(20) == 0
    assert server.asked == ["/held.pth"]
    assert path.read_bytes() == BODY


def test_threads_at_once(server, path):
    def fetch():
        with locked(path):
            download(server.url("weights"), path, PREFIX)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert server.asked == ["/weights.pth"]
    assert path.read_bytes() == BODY


def test_lock_is_let_go_of_after_an_error(path, monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    monkeypatch.setattr(downloads, "PATIENCE", 0.0)
    with locked(path):
        pass
    assert capsys.readouterr().err == ""


def test_disk_full(server, path):
    resource = pytest.importorskip("resource")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
    try:
        with pytest.raises(WeightsError, match="JAX_EXCITE_CACHE") as caught:
            download(server.url("weights"), path, PREFIX)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert str(path.parent) in str(caught.value)
    assert "File too large" in str(caught.value)
    assert there(path) == []


def test_unwritable_folder(tmp_path):
    blocked = tmp_path / "file" / "cache"
    blocked.parent.touch()
    with pytest.raises(WeightsError, match="JAX_EXCITE_CACHE") as caught, locked(blocked / "x.pth"):
        pass
    assert str(blocked) in str(caught.value)


def test_lock_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "cache" / "net.pth"
    with locked(path):
        assert path.parent.is_dir()


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_EXCITE_CACHE", raising=False)
    assert cache_folder().name == "jax_excite"
    monkeypatch.setenv("JAX_EXCITE_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("JAX_EXCITE_CACHE", "~/weights")
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.setenv("JAX_EXCITE_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"


def test_import_is_light():
    code = f"{BARE}\nimport jax_excite.weights.downloads; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = result.stdout.split()
    assert "jax_excite.weights.downloads" in loaded
    assert {"pooch", "requests", "rich", "filelock", "platformdirs"}.isdisjoint(loaded)
