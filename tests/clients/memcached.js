// `memcached`, the older client of Node.js, speaks the text protocol. Usage: node memcached.js HOST:PORT
'use strict';
const assert = require('assert');
const Memcached = require('memcached');

async function main() {
  const client = new Memcached(process.argv[2], { timeout: 20000, retries: 0 });
  const call = (name, ...values) =>
    new Promise((resolve, reject) => {
      client[name](...values, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  // It takes the last three numbers of the version for it, and throws where there are none.
  const [version] = await call('version');
  assert.deepStrictEqual([version.major, version.minor].map(Number), [1, 6], version.version);
  assert.strictEqual(await call('set', 'key', 'value', 100), true);
  assert.strictEqual(await call('get', 'key'), 'value');
  assert.strictEqual(await call('get', 'missing'), undefined);
  await assert.rejects(call('add', 'key', 'other', 0));
  assert.strictEqual(await call('add', 'new', 'other', 0), true);
  assert.strictEqual(await call('replace', 'key', 'second', 0), true);
  const { cas } = await call('gets', 'key');
  assert.strictEqual(await call('cas', 'key', 'third', cas, 0), true);
  assert.strictEqual(await call('cas', 'key', 'fourth', cas, 0), false);
  assert.strictEqual(await call('append', 'key', '+'), true);
  assert.strictEqual(await call('prepend', 'key', '-'), true);
  assert.strictEqual(await call('get', 'key'), '-third+');
  await call('set', 'number', 10, 0);
  assert.strictEqual(await call('incr', 'number', 5), 15);
  assert.strictEqual(await call('decr', 'number', 20), 0);
  assert.strictEqual(await call('incr', 'absent', 1), false);
  assert.strictEqual(await call('touch', 'key', 200), true);
  const object = { list: [1, 2, 3], text: 'ringlane' };
  await call('set', 'object', object, 0);
  assert.deepStrictEqual(await call('get', 'object'), object);
  const large = 'ringlane'.repeat(112 * 1024);
  await call('set', 'large', large, 0);
  assert.strictEqual(await call('get', 'large'), large);
  const keys = Array.from({ length: 200 }, (_, i) => `many:${i}`);
  await Promise.all(keys.map((key, i) => call('set', key, `value ${i}`, 0)));
  const found = await call('getMulti', [...keys, 'missing']);
  assert.deepStrictEqual(found, Object.fromEntries(keys.map((key, i) => [key, `value ${i}`])));
  assert.strictEqual(await call('del', 'key'), true);
  assert.strictEqual(await call('del', 'key'), false);
  const [stats] = await call('stats');
  assert.ok(stats.curr_items > 200, `curr_items ${stats.curr_items}`);
  await call('flush');
  assert.strictEqual(await call('get', 'new'), undefined);
  client.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
