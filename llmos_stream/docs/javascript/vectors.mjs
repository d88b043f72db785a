// node vectors.mjs FOLDER: hold this implementation against the test vectors. Prints one line of JSON.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  Assembler, decodePayload, encodeFloat32, encodeInt8, fragmentsOf, hex, Model, readFrame, sha256, weightsDigest,
} from './llmos.mjs';

const folder = process.argv[2];
const names = readdirSync(folder).filter((name) => name.endsWith('.bin')).map((name) => name.slice(0, -4)).sort();
const bytes = (name) => readFileSync(join(folder, `${name}.bin`));
const meaning = (name) => JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8'));
const checked = { frames: 0, updates: 0, fragments: 0, versions: 0, chunks: 0, records: 0, encoded: 0 };

function same(found, wanted, what) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${what}: ${JSON.stringify(found)} is not ${JSON.stringify(wanted)}`);
}

// zstd with the body as it is, in one raw block, as the vectors have it.
function stored(body) {
  const header = body.length < 256 ? [0x20, body.length] : [0x60, (body.length - 256) & 255, (body.length - 256) >> 8];
  const block = (body.length << 3) | 1;
  return Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, ...header, block & 255, (block >> 8) & 255, block >> 16]), body]);
}

let model = new Model();
const assembler = new Assembler();
for (const name of names) {
  const data = bytes(name);
  const told = meaning(name);
  same(hex(sha256(data)), told.sha256, name);
  if (told.head_digest) {
    const frame = readFrame(data);
    same(frame.digest, told.head_digest, `${name}: digest of the head`);
    checked.frames++;
    if (frame.kind === 'update') {
      let buffers = (told.tensors ?? []).filter((row) => row[3] === 'buffer').reduce((sum, row) => sum + row[1][0], 0);
      const { codec, params, range } = frame.head;
      if (told.fragments) {
        const cut = fragmentsOf(told.tensors, told.fragments.length);
        same(cut.map((one) => one.range), told.fragments, `${name}: where it is cut`);
        const own = cut.find((one) => String(one.range) === String(range));
        same(hex(own.layout), hex(frame.head.layout), `${name}: digest of the fragment's layout`);
        buffers = own.buffers;
        checked.fragments++;
      }
      const values = decodePayload(frame.payload, codec, params ?? {}, told.values.length - buffers, buffers);
      same(Array.from(values), told.values, name);
      const encoded = told.encoded && Float32Array.from(told.encoded);
      if (name === 'update-int8' || name === 'update-float32') {
        const payload = codec === 4 ? encodeInt8(encoded, params.block, stored) : encodeFloat32(encoded, stored);
        same(hex(payload), hex(frame.payload), `${name}: as it is written here`);
        checked.encoded++;
      }
      checked.updates++;
    } else if (frame.kind === 'version') {
      if (frame.head.kind === 'full') model = new Model();
      same(model.apply(frame), true, name);
      same(Array.from(model.weights), told.values, name);
      same(weightsDigest(model.weights), told.head.weights_digest, name);
      checked.versions++;
    }
  } else if (told.count) {
    const whole = assembler.push(0, data);
    same(whole !== null, told.index === told.count - 1, name);
    if (whole) same(hex(whole), hex(bytes('update-int8')), name);
    checked.chunks++;
  } else {
    same(JSON.parse(data), told.value, name);
    checked.records++;
  }
}
console.log(JSON.stringify(checked));
