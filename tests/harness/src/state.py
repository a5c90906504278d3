# A program with state of many kinds. It listens at /run/state.sock and tells everyone who connects
# what it counts and what it finds wrong; its first argument is the directory of a volume.
import hashlib, json, mmap, os, socket, sys, threading, time

volume = sys.argv[1]
block = os.urandom(8 << 20)
digest = hashlib.sha256(block).hexdigest()

with open("/dev/shm/counter", "wb") as f:
    f.truncate(4096)
with open("/dev/shm/counter", "r+b") as f:
    shared = mmap.mmap(f.fileno(), 4096)

child = os.fork()
if child == 0:
    while True:
        shared[0:8] = (int.from_bytes(shared[0:8], "little") + 1).to_bytes(8, "little")
        time.sleep(0.01)

pipe = os.pipe()
os.write(pipe[1], b"unread in a pipe")

gone = open("/tmp/gone", "w+")
gone.write("text of a deleted file")
gone.flush()
os.unlink("/tmp/gone")

server = socket.socket()
server.bind(("127.0.0.1", 7001))
server.listen()
client = socket.create_connection(("127.0.0.1", 7001))
served = server.accept()[0]
client.sendall(b"unread in a connection")

os.unlink("/etc/debian_version")
with open("/etc/added", "w") as f:
    f.write("added")
os.setxattr("/etc/added", "user.color", b"blue")

path = lambda name: os.path.join(volume, name)
with open(path("sparse"), "wb") as f:
    f.seek(32 << 20)
    f.write(b"end")
with open(path("large"), "wb") as f:
    f.write(block)
os.link(path("large"), path("same"))
os.setxattr(path("large"), "user.color", b"green")
os.chown(path("sparse"), 1000, 2000)
os.chmod(path("sparse"), 0o640)
os.mkdir(path("deep"))
os.symlink("../large", path("deep/link"))

threads = [0, 0]
def count(index):
    while True:
        threads[index] += 1
        time.sleep(0.01)
for index in range(2):
    threading.Thread(target=count, args=(index,), daemon=True).start()

def verify(number):
    wrong = []
    def same(what, found, wanted):
        if found != wanted:
            wrong.append(f"{what}: {str(found)[:100]} and not {str(wanted)[:100]}")
    same("memory", hashlib.sha256(block).hexdigest(), digest)
    data = os.read(pipe[0], 100)
    same("pipe", data, b"unread in a pipe")
    os.write(pipe[1], data)
    gone.seek(0)
    same("deleted file", gone.read(), "text of a deleted file")
    data = served.recv(100)
    same("connection", data, b"unread in a connection")
    served.sendall(b"answer")
    same("answer", client.recv(100), b"answer")
    client.sendall(data)
    same("deletion", os.path.exists("/etc/debian_version"), False)
    same("addition", open("/etc/added").read(), "added")
    same("attribute", os.getxattr("/etc/added", "user.color"), b"blue")
    large, sparse = os.stat(path("large")), os.stat(path("sparse"))
    same("file of the volume", hashlib.sha256(open(path("large"), "rb").read()).hexdigest(), digest)
    same("hard link", (large.st_nlink, large.st_ino), (2, os.stat(path("same")).st_ino))
    same("attribute in the volume", os.getxattr(path("large"), "user.color"), b"green")
    same("owner", (sparse.st_uid, sparse.st_gid, sparse.st_mode), (1000, 2000, 0o100640))
    same("length", sparse.st_size, (32 << 20) + 3)
    same("link", os.readlink(path("deep/link")), "../large")
    if sparse.st_blocks * 512 > 1 << 20:
        wrong.append("the hole has become blocks")
    return {"number": number, "wrong": wrong, "threads": threads[:], "pid": os.getpid(),
            "child": [child, int.from_bytes(shared[0:8], "little")]}

listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/state.sock")
listener.listen()
number = 0
while True:
    connection = listener.accept()[0]
    number += 1
    connection.sendall(json.dumps(verify(number)).encode())
    connection.close()
