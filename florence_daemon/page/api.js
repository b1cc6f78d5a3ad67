// Requests to the daemon. The token stays in this tab and travels in a header: a page of another site cannot have it sent.

const TOKEN = "florence-daemon-token";
let inMemory = "";

/** What the daemon refused, and why. status: 0 when it did not answer at all. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function token() {
  try {
    return sessionStorage.getItem(TOKEN) || "";
  } catch {
    return inMemory;
  }
}

export function setToken(value) {
  inMemory = value;
  try {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // A browser that keeps nothing: until the page is closed.
  }
}

/** Ask, and take JSON. Throws Refused. */
export async function ask(path, options = {}) {
  return (await request(path, options)).json();
}

/** Have something done. Throws Refused. */
export async function tell(path, members) {
  return ask(path, json("POST", members));
}

/** What a request with JSON needs. */
export function json(method, members) {
  if (members === undefined) return { method };
  return { method, body: JSON.stringify(members), headers: { "Content-Type": "application/json" } };
}

/** Ask, and take a picture as an address for this page. Throws Refused. */
export async function picture(path, options = {}) {
  return URL.createObjectURL(await (await request(path, options)).blob());
}

const known = new Map();

/** Ask for what is asked for again and again; null when it is as it was. Throws Refused. */
export async function news(path, options = {}) {
  const etag = known.get(path);
  const response = await request(path, { ...options, cache: "no-store", headers: etag ? { "If-None-Match": etag } : {} });
  if (response.status === 304) return null;
  const answer = await response.json();
  known.set(path, response.headers.get("ETag") || "");
  return answer;
}

/** Forget what was answered, so that all of it counts as new. */
export function forget() {
  known.clear();
}

async function request(path, options) {
  const headers = { Accept: "application/json", ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The daemon does not answer.");
  }
  if (response.ok || response.status === 304) return response;
  throw new Refused(response.status, await reason(response));
}

async function reason(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `The daemon answered ${response.status}.`;
  }
}
