// Timers, workers, streams, a child, a server: each counts, and `ask` (another node) reads the counts.
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { spawn } = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const port = 8080;
if (process.argv[2] === 'ask') {
  http.get({ port, host: '127.0.0.1', timeout: 10000 }, (answer) => {
    let text = '';
    answer.on('data', (part) => { text += part; });
    answer.on('end', () => {
      const { wrong, counts } = JSON.parse(text);
      if (wrong.length) { console.error(wrong.join('\n')); process.exit(1); }
      console.log(Math.min(...counts));
    });
  }).on('error', (error) => { console.error(error); process.exit(1); });
} else if (isMainThread) {
  const counts = [0, 0, 0, 0, 0, 0];
  const wrong = [];
  const held = new Map();
  for (let i = 0; i < 100000; i++) held.set('key' + i, i * 3);
  setInterval(() => { counts[0]++; }, 5);
  for (const at of [1, 2]) {
    const worker = new Worker(__filename);
    worker.on('error', (error) => wrong.push('worker: ' + error));
    worker.on('message', ({ n, digest }) => {
      if (n !== counts[at]) wrong.push(`worker ${at} says ${n}, ${counts[at]} was expected`);
      if (digest !== crypto.createHash('sha256').update('n' + n).digest('hex')) wrong.push('digest of ' + n);
      counts[at]++;
      worker.postMessage(counts[at]);
    });
    worker.postMessage(0);
  }
  // The thread pool: files written and read again.
  const file = (n) => {
    const path = '/tmp/file' + (n % 8);
    fs.writeFile(path, 'content ' + n, (error) => {
      if (error) wrong.push('write: ' + error);
      fs.readFile(path, 'utf8', (error, text) => {
        if (error || text !== 'content ' + n) wrong.push(`read: ${error} ${text}`);
        counts[3]++;
        setImmediate(file, n + 1);
      });
    });
  };
  file(0);
  const cat = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] });
  cat.on('exit', (code) => wrong.push('cat ended: ' + code));
  let line = '';
  cat.stdout.on('data', (part) => {
    line += part;
    if (!line.endsWith('\n')) return;
    if (line !== `line ${counts[4]}\n`) wrong.push(`cat says ${line}`);
    line = '';
    counts[4]++;
    setTimeout(() => cat.stdin.write(`line ${counts[4]}\n`), 1);
  });
  cat.stdin.write('line 0\n');
  // A connection to itself, which stays open.
  const server = http.createServer((request, response) => {
    if (request.url === '/count') return response.end('x');
    for (const [key, value] of held) if (key !== 'key' + value / 3) wrong.push('map: ' + key);
    response.end(JSON.stringify({ counts, wrong }));
  });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const again = () => http.get({ port, host: '127.0.0.1', path: '/count', agent }, (answer) => {
    answer.resume();
    answer.on('end', () => { counts[5]++; setTimeout(again, 2); });
  }).on('error', (error) => wrong.push('connection: ' + error));
  server.listen(port, () => { console.log('ready'); again(); });
} else {
  const crypto = require('crypto');
  parentPort.on('message', (n) => {
    let garbage = [];
    for (let i = 0; i < 2000; i++) garbage.push({ i, text: 'n' + i });
    setTimeout(() => {
      parentPort.postMessage({ n, digest: crypto.createHash('sha256').update('n' + n).digest('hex') });
    }, 2);
  });
}
