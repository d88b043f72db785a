// node client.mjs BROKER FEDERATION CLIENT UPDATES: follows a federation and sends updates. Put your training into `train`.

import { createRequire } from 'node:module';
import { Kafka, logLevel, Partitioners } from 'kafkajs';
import { Assembler, CODECS, cut, encodeFloat32, encodeInt8, Model, readFrame, writeUpdate } from './llmos.mjs';

const { ZstdCodec } = createRequire(import.meta.url)('zstd-codec');
const zstd = await new Promise((ready) => ZstdCodec.run((codec) => ready(new codec.Simple())));
const [broker, federation, client, updates] = process.argv.slice(2);

// What a real client does here: train on its own data. `parameters` are the differences, `buffers` the values.
const train = (weights, buffers) => ({
  parameters: weights.slice(0, weights.length - buffers).map((value) => -0.1 * value),
  buffers: weights.slice(weights.length - buffers),
  examples: 10,
  metrics: { loss: 0.5 },
});
const compress = (body) => zstd.compress(body, 1);

const kafka = new Kafka({ clientId: client, brokers: [broker], logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId: `${client}-${process.pid}` });
const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
await Promise.all([producer.connect(), consumer.connect()]);
await consumer.subscribe({ topics: [`${federation}.models`, `${federation}.control`], fromBeginning: true });

const assembler = new Assembler();
const model = new Model();
let sequence = 0; // a real client keeps it in a file: it is never used twice
let ended;
const end = new Promise((done) => { ended = done; });

let carry; // what it has learnt in the fragments that it has not sent yet; a real client keeps that in a file too

async function send() {
  const start = model.weights.map((value, i) => value + (carry?.[i] ?? 0));
  const { parameters, buffers, examples, metrics } = train(start, model.buffers);
  const fragment = model.fragments[(model.moved + 1) % model.fragments.length]; // they take turns
  const [begin, end] = fragment.range;
  const learnt = parameters.map((value, i) => value + (carry?.[i] ?? 0));
  carry = learnt.slice().fill(0, begin, Math.min(end, learnt.length));
  const own = fragment.buffers ? buffers : new Float32Array();
  const payload = Buffer.concat([encodeInt8(learnt.slice(begin, end), 512, compress), encodeFloat32(own, compress)]);
  const head = {
    client, seq: sequence, base: model.number, n: examples, layout: fragment.layout,
    codec: CODECS.int8, params: { block: 512, stochastic: 0 }, metrics,
    ...(model.fragments.length > 1 && { range: fragment.range }),
  };
  for (const value of cut(writeUpdate(head, payload))) {
    await producer.send({ topic: `${federation}.updates`, acks: -1, messages: [{ key: client, value }] });
  }
  console.log(`sent update ${sequence} on version ${model.number}`);
  sequence += 1;
}

await consumer.run({
  eachMessage: async ({ topic, partition, message }) => {
    if (topic.endsWith('.control')) {
      const finished = message.key.toString() === 'run' && JSON.parse(message.value).state === 'finished';
      if (finished) ended('the run has ended');
      return;
    }
    const whole = assembler.push(partition, message.value);
    if (!whole || !model.apply(readFrame(whole))) return;
    console.log(`version ${model.number}: digest ok`);
    if (sequence < Number(updates)) await send();
    else ended('all updates are sent');
  },
});
console.log(await end);
await Promise.all([consumer.disconnect(), producer.disconnect()]);
