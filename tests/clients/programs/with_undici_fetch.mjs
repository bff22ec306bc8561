// undici's fetch with the agent that obeys the proxy variables: argv is undici's directory and the URL.
import { createRequire } from "node:module";
const [, , directory, url] = process.argv;
const { EnvHttpProxyAgent, fetch } = createRequire(`${directory}/`)("undici");
const response = await fetch(url, { dispatcher: new EnvHttpProxyAgent(), signal: AbortSignal.timeout(90_000) });
if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
process.stdout.write(await response.text());
