// undici with the agent that obeys the proxy variables when set: argv is undici's directory and the URL.
import { createRequire } from "node:module";
const [, , directory, url] = process.argv;
const { EnvHttpProxyAgent, request } = createRequire(`${directory}/`)("undici");
const { statusCode, body } = await request(url, { dispatcher: new EnvHttpProxyAgent(), headersTimeout: 90_000 });
const text = await body.text();
if (statusCode !== 200) throw new Error(`${statusCode} ${text}`);
process.stdout.write(text);
