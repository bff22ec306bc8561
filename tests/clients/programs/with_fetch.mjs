// Node's own fetch: argv is the URL; the body goes to stdout.
const response = await fetch(process.argv[2], { signal: AbortSignal.timeout(90_000) });
if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
process.stdout.write(await response.text());
