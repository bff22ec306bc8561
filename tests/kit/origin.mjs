// The application of `kit.origins` in Node.js: behind other servers in clear, and in TLS of its own.
//
// argv is a file: {"log", "plain": port, "hosts": [{"address", "name", "least", "most", "wants", "cert", "key",
// "clients", "staple", "idle"}]}. Each request is a line of the log, as it arrives.

import { createHash } from "node:crypto";
import { appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createSecureServer } from "node:http2";
import { posix } from "node:path";
import { parse } from "node:url";
import { gzipSync } from "node:zlib";

const { log, plain, hosts } = JSON.parse(readFileSync(process.argv[2]));
const TEXT = Buffer.from("some text that is worth compressing\n".repeat(2000));
const DATA = Buffer.alloc(20 << 20, "0123456789abcdef\n");
const ETAG = '"kit"';
const waiting = new Map();
const served = new WeakMap();
const dropped = new Set();

// What a careless application makes of a path: decoded, its dots resolved before and behind; or taken as it is.
function areas(url) {
  const found = [parse(url).pathname ?? ""];
  try {
    found.push(posix.normalize(decodeURIComponent(new URL(url, "http://kit").pathname)));
  } catch {
    // It would answer 400.
  }
  const known = ["v1", "scoped", "admin"];
  return found.map((path) => path.toLowerCase().split(/[/\\]+/).find((part) => part) ?? "")
    .map((part) => part.split(";")[0]).map((part) => (known.includes(part) ? part : "other"));
}

function partial(request, response) {
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range);
  const range = `bytes ${first}-${last}/${DATA.length}`;
  response.writeHead(206, { "Content-Range": range, ETag: ETAG }).end(DATA.subarray(+first, +last + 1));
}

const routes = {
  who(request, response) {
    response.end(JSON.stringify({ method: request.method, url: request.url, fields: request.rawHeaders }));
  },
  upload(request, response) {
    const hash = createHash("sha256");
    let length = 0;
    request.on("data", (piece) => { hash.update(piece); length += piece.length; });
    request.on("end", () => response.end(JSON.stringify({ length, sha256: hash.digest("hex") })));
  },
  data(request, response) {
    if (request.headers["if-none-match"] === ETAG) response.writeHead(304, { ETag: ETAG }).end();
    else if (request.headers.range) partial(request, response);
    else response.writeHead(200, { ETag: ETAG, "Content-Length": DATA.length }).end(DATA);
  },
  text(request, response) {
    const gzip = /gzip/.test(request.headers["accept-encoding"] ?? "");
    if (gzip) response.setHeader("Content-Encoding", "gzip");
    response.end(gzip ? gzipSync(TEXT) : TEXT);
  },
  gzipped(_, response) {
    response.writeHead(200, { "Content-Encoding": "gzip" }).end(gzipSync(TEXT));
  },
  trailers(_, response) {
    response.setHeader("Trailer", "X-Checksum");
    response.write("one ");
    response.write("two ");
    response.addTrailers({ "X-Checksum": "12" });
    response.end("three\n");
  },
  events(request, response) {
    response.writeHead(200, { "Content-Type": "text/event-stream", "X-Accel-Buffering": "no" });
    response.write("data: first\n\n");
    waiting.set(parse(request.url).query, () => response.end("data: second\n\n"));
  },
  "go-on"(request, response) {
    waiting.get(parse(request.url).query)?.();
    response.end("gone on\n");
  },
  none(_, response) {
    response.writeHead(204).end();
  },
  refuse(_, response) {
    response.writeHead(413, { Connection: "close" }).end("too large\n");
  },
  close(_, response) {
    response.writeHead(200, { Connection: "close" }).end("closed\n");
  },
  long(_, response) {
    response.writeHead(200, { "X-Long": "l".repeat(16000) }).end("long\n");
  },
  // As a server whose idle connection has just run out: a connection that was used before ends without an answer.
  drop(request, response) {
    const name = parse(request.url).query;
    if (served.get(request.socket) > 1 && !dropped.has(name)) {
      dropped.add(name);
      request.socket.destroy();
    } else response.end("kept\n");
  },
};

function note(name, request, proxied) {
  const socket = request.socket;
  served.set(socket, (served.get(socket) ?? 0) + 1);
  if (proxied) return;
  const certificate = socket.getPeerCertificate()?.subject?.O ?? "-";
  const fields = [name, `${request.method} ${request.url} HTTP/${request.httpVersion}`, request.headers.authorization ?? "-",
    socket.getProtocol(), socket.isSessionReused() ? "r" : ".", served.get(socket), certificate,
    request.headers["user-agent"] ?? "-"];
  appendFileSync(log, `${fields.join("\t")}\n`);
}

function answer(name, proxied, request, response) {
  note(name, request, proxied);
  response.setHeader("X-Area", areas(request.url).join(","));
  const [path] = request.url.split("?");
  const route = path.startsWith("/v1/app/") && routes[path.slice(8)];
  if (route) route(request, response);
  else response.writeHead(path.startsWith("/v1/") ? 200 : 404).end("here\n");
}

function listening(server, port, address) {
  return new Promise((done) => server.listen(port, address, done));
}

await listening(createServer((...both) => answer("", true, ...both)), plain, "127.0.0.1");
for (const each of hosts) {
  const server = createSecureServer({
    cert: readFileSync(each.cert), key: readFileSync(each.key), minVersion: each.least, maxVersion: each.most,
    allowHTTP1: true,
    ...(each.wants ? { requestCert: true, rejectUnauthorized: true, ca: readFileSync(each.clients) } : {}),
  }, (...both) => answer(each.name, false, ...both));
  server.on("checkContinue", (request, response) => {
    if (!request.url.endsWith("/refuse")) response.writeContinue();
    answer(each.name, false, request, response);
  });
  server.keepAliveTimeout = each.idle;
  server.on("OCSPRequest", (_certificate, _issuer, done) => done(null, readFileSync(each.staple)));
  // Of a session of TLS 1.2 that is resumed Node does not tell the name.
  server.on("secureConnection", (socket) => socket.servername || socket.isSessionReused() || socket.destroy());
  await listening(server, 443, each.address);
}
