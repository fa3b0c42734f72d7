// memjs speaks the classic binary protocol only. Usage: node memjs.js HOST:PORT
'use strict';
const assert = require('assert');
const memjs = require('memjs');

async function main() {
  const client = memjs.Client.create(process.argv[2], { timeout: 20, retries: 1 });
  assert.strictEqual(await client.set('key', 'value', { expires: 100 }), true);
  assert.strictEqual((await client.get('key')).value.toString(), 'value');
  assert.strictEqual((await client.get('missing')).value, null);
  assert.strictEqual(await client.add('key', 'other', {}), false);
  assert.strictEqual(await client.add('new', 'other', {}), true);
  assert.strictEqual(await client.replace('key', 'second', {}), true);
  assert.strictEqual(await client.replace('absent', 'x', {}), false);
  assert.strictEqual((await client.get('key')).value.toString(), 'second');
  await client.set('number', '10', {});
  assert.strictEqual((await client.increment('number', 5, {})).value, 15);
  assert.strictEqual((await client.decrement('number', 20, {})).value, 0);
  assert.strictEqual((await client.increment('fresh', 1, { initial: 7 })).value, 7);
  assert.strictEqual(await client.append('key', '+'), true);
  assert.strictEqual((await client.get('key')).value.toString(), 'second+');
  assert.strictEqual(await client.touch('key', 200), true);
  const large = Buffer.alloc(900 * 1000, 'ringlane');
  assert.strictEqual(await client.set('large', large, {}), true);
  assert.ok((await client.get('large')).value.equals(large));
  const answers = await Promise.all(
    Array.from({ length: 500 }, (_, i) =>
      client.set(`many:${i}`, `value ${i}`, {}).then(() => client.get(`many:${i}`))),
  );
  answers.forEach((answer, i) => assert.strictEqual(answer.value.toString(), `value ${i}`));
  assert.strictEqual(await client.delete('key'), true);
  assert.strictEqual(await client.delete('key'), false);
  const stats = await new Promise((resolve, reject) => {
    client.stats((error, server, found) => (error ? reject(error) : resolve(found)));
  });
  assert.ok(Number(stats.curr_items) > 500, `curr_items ${stats.curr_items}`);
  await client.flush();
  assert.strictEqual((await client.get('new')).value, null);
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
