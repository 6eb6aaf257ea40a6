// Node's two Redis clients through the proxy: node clients.mjs NAME HOST PORT
//
// Prints one line per check that passed; the first that fails ends the process with its reason.
import assert from "node:assert/strict";

import { Redis } from "ioredis";
import { createClient } from "redis";

const [name, host, portText] = process.argv.slice(2);
const port = Number(portText);
const prefix = `node:${name}:`;
const key = (rest) => prefix + rest;
const open = [];

async function check(what, run) {
  const timer = setTimeout(() => {
    console.error(`${what}: no end after 10 s`);
    process.exit(1);
  }, 10_000);
  try {
    await run();
  } catch (error) {
    console.error(`${what}: ${error.stack}`);
    process.exit(1);
  }
  clearTimeout(timer);
  console.log(what);
}

async function ioredis(options = {}) {
  const connect = () => {
    const client = new Redis({ host, port, maxRetriesPerRequest: 2, ...options });
    open.push(() => client.disconnect());
    return client;
  };
  const client = connect();

  await check("strings", async () => {
    assert.equal(await client.set(key("s"), "värde"), "OK");
    assert.equal(await client.get(key("s")), "värde");
    assert.equal(await client.get(key("absent")), null);
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
    await client.set(key("bytes"), bytes);
    assert.deepEqual(await client.getBuffer(key("bytes")), bytes);
    assert.equal(await client.incrby(key("n"), 5), 5);
  });
  await check("hashes", async () => {
    assert.equal(await client.hset(key("h"), { a: "1", b: "2" }), 2);
    assert.deepEqual(await client.hgetall(key("h")), { a: "1", b: "2" });
  });
  await check("pipeline", async () => {
    const pipeline = client.pipeline();
    for (let n = 0; n < 200; n++) pipeline.set(key(`p${n}`), n).get(key(`p${n}`));
    const replies = await pipeline.exec();
    assert.equal(replies.length, 400);
    replies.forEach(([error, value], n) => {
      assert.equal(error, null);
      assert.equal(value, n % 2 ? String((n - 1) / 2) : "OK");
    });
  });
  await check("errors", async () => {
    await assert.rejects(client.incr(key("s")), /not an integer/);
    await assert.rejects(client.call("NOSUCHCOMMAND"), /unknown command/);
    assert.equal(await client.ping(), "PONG");
  });
  await check("transaction", async () => {
    const replies = await client.multi().set(key("t"), "1").incr(key("t")).exec();
    assert.deepEqual(replies, [[null, "OK"], [null, 2]]);
  });
  await check("watch", async () => {
    const other = connect();
    await client.set(key("w"), "1");
    await client.watch(key("w"));
    await other.set(key("w"), "2");
    assert.equal(await client.multi().set(key("w"), "3").exec(), null);
    assert.equal(await client.get(key("w")), "2");
  });
  await check("publish and subscribe", async () => {
    const subscriber = connect();
    const message = new Promise((resolve) => subscriber.on("message", (...got) => resolve(got)));
    assert.equal(await subscriber.subscribe(key("c")), 1);
    assert.equal(await client.publish(key("c"), "hello"), 1);
    assert.deepEqual(await message, [key("c"), "hello"]);
    assert.equal(await subscriber.unsubscribe(key("c")), 0);
    assert.equal(await subscriber.ping(), "PONG");
  });
  await check("blocking", async () => {
    const waiter = connect();
    const popped = waiter.blpop(key("q"), 5);
    await client.ping();
    setTimeout(() => client.rpush(key("q"), "item"), 50);
    assert.deepEqual(await popped, [key("q"), "item"]);
    assert.equal(await waiter.blpop(key("q"), 0.05), null);
  });
  await check("scripts", async () => {
    client.defineCommand("pair", { numberOfKeys: 1, lua: "return {KEYS[1], ARGV[1]}" });
    assert.deepEqual(await client.pair(key("k"), "v"), [key("k"), "v"]);
    assert.deepEqual(await client.pair(key("k"), "w"), [key("k"), "w"]);
  });
  await check("databases and names", async () => {
    const third = new Redis({ host, port, db: 3, connectionName: "third" });
    open.push(() => third.disconnect());
    await third.set(key("db"), "3");
    assert.equal(await third.client("GETNAME"), "third");
    assert.equal(await client.get(key("db")), null);
    await third.flushdb();
  });
  await check("scan stream", async () => {
    const found = new Set();
    for await (const keys of client.scanStream({ match: key("p*"), count: 50 })) {
      keys.forEach((one) => found.add(one));
    }
    assert.equal(found.size, 200);
  });
  await check("big value", async () => {
    const big = "x".repeat(3_000_000);
    await client.set(key("big"), big);
    assert.equal(await client.get(key("big")), big);
    await client.del(key("big"));
  });
}

async function nodeRedis(RESP) {
  const connect = async (options = {}) => {
    const client = createClient({
      socket: { host, port, reconnectStrategy: false },
      RESP,
      ...options,
    });
    client.on("error", (error) => {
      console.error(`client error: ${error.stack}`);
      process.exit(1);
    });
    await client.connect();
    open.push(() => client.destroy());
    return client;
  };
  const client = await connect();

  await check("strings", async () => {
    assert.equal(await client.set(key("s"), "värde"), "OK");
    assert.equal(await client.get(key("s")), "värde");
    assert.equal(await client.get(key("absent")), null);
    assert.equal(await client.incrBy(key("n"), 5), 5);
  });
  await check("hashes", async () => {
    assert.equal(await client.hSet(key("h"), { a: "1", b: "2" }), 2);
    assert.deepEqual({ ...(await client.hGetAll(key("h"))) }, { a: "1", b: "2" });
  });
  await check("sorted sets", async () => {
    await client.zAdd(key("z"), [{ score: 1.5, value: "a" }, { score: 2, value: "b" }]);
    assert.deepEqual(await client.zRangeWithScores(key("z"), 0, -1), [
      { value: "a", score: 1.5 },
      { value: "b", score: 2 },
    ]);
  });
  await check("pipeline", async () => {
    // One turn of the loop: node-redis sends these together.
    const replies = await Promise.all(
      Array.from({ length: 200 }, (_, n) => [
        client.set(key(`p${n}`), String(n)),
        client.get(key(`p${n}`)),
      ]).flat(),
    );
    replies.forEach((value, n) => assert.equal(value, n % 2 ? String((n - 1) / 2) : "OK"));
  });
  await check("errors", async () => {
    await assert.rejects(client.incr(key("s")), /not an integer/);
    await assert.rejects(client.sendCommand(["NOSUCHCOMMAND"]), /unknown command/);
    assert.equal(await client.ping(), "PONG");
  });
  await check("transaction", async () => {
    const replies = await client.multi().set(key("t"), "1").incr(key("t")).exec();
    assert.deepEqual(replies, ["OK", 2]);
  });
  await check("watch", async () => {
    const other = await connect();
    await client.set(key("w"), "1");
    await client.watch(key("w"));
    await other.set(key("w"), "2");
    await assert.rejects(client.multi().set(key("w"), "3").exec(), /watched keys/i);
    assert.equal(await client.get(key("w")), "2");
  });
  await check("publish and subscribe", async () => {
    const subscriber = await connect();
    let heard;
    const message = new Promise((resolve) => (heard = resolve));
    await subscriber.subscribe(key("c"), (text, channel) => heard([text, channel]));
    assert.equal(await client.publish(key("c"), "hello"), 1);
    assert.deepEqual(await message, ["hello", key("c")]);
    await subscriber.unsubscribe(key("c"));
    // In RESP2 a connection that was subscribed gets it as a Buffer, from Redis itself too.
    assert.equal(String(await subscriber.ping()), "PONG");
  });
  await check("blocking", async () => {
    const waiter = await connect();
    const popped = waiter.blPop(key("q"), 5);
    setTimeout(() => client.rPush(key("q"), "item"), 50);
    assert.deepEqual({ ...(await popped) }, { key: key("q"), element: "item" });
    assert.equal(await waiter.blPop(key("q"), 0.05), null);
  });
  await check("databases and names", async () => {
    const third = await connect({ database: 3, name: "third" });
    await third.set(key("db"), "3");
    assert.equal(await third.clientGetName(), "third");
    assert.equal(await client.get(key("db")), null);
    await third.flushDb();
  });
  await check("protocol", async () => {
    const reply = await client.sendCommand(["CONFIG", "GET", "maxmemory"]);
    // A RESP3 map, which arrives as an object; in RESP2 it is a list.
    assert.equal(Array.isArray(reply), RESP === 2);
  });
  await check("big value", async () => {
    const big = "x".repeat(3_000_000);
    await client.set(key("big"), big);
    assert.equal(await client.get(key("big")), big);
    await client.del(key("big"));
  });
}

const clients = {
  ioredis: () => ioredis(),
  "node-redis-resp2": () => nodeRedis(2),
  "node-redis-resp3": () => nodeRedis(3),
};
await clients[name]();
open.forEach((close) => close());
console.log("all passed");
