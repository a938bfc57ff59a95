// What the native tests do in a process of their own, so that a crash is seen as one: node scripts.mjs NAME ADDON.
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { layoutOf, openLane } from './member.mjs'

const file = fileURLToPath(import.meta.url)
const [, , name, path] = isMainThread ? process.argv : [null, null, workerData.name, workerData.path]
const addon = createRequire(import.meta.url)(path)
const shared = isMainThread ? new SharedArrayBuffer(layoutOf(2).byteLength) : workerData.shared

/** A worker that has begun what it does for ever. */
async function worker(what) {
  const made = new Worker(file, { workerData: { name: what, path, shared } })
  await once(made, 'message')
  return made
}

async function endsWithin(milliseconds, ending) {
  const start = performance.now()
  await ending
  const took = performance.now() - start
  if (took > milliseconds) throw new Error(`It took ${took} ms to end`)
}

const scripts = {
  async 'terminate wait'() {
    for (let i = 0; i < 5; i++) await endsWithin(3000, (await worker('waits')).terminate())
  },
  async 'terminate waitAsync'() {
    for (let i = 0; i < 20; i++) await endsWithin(3000, (await worker('waits beside')).terminate())
  },
  async 'exit during waitAsync'() {
    const { lane } = openLane(addon, shared, 0, 2)
    for (let i = 0; i < 10; i++) void addon.waitAsync(lane, 1, 0, 60_000)
    setTimeout(() => process.exit(7), 50)
  },
  /** Nothing but the wait keeps the event loop alive, and nothing does after it. */
  async liveness() {
    const { lane } = openLane(addon, shared, 0, 2)
    const start = performance.now()
    const result = await addon.waitAsync(lane, 1, 0, 300)
    console.log(result, performance.now() - start >= 299)
  },
  async 'collected reducers'() {
    for (let i = 0; i < 2000; i++) openLane(addon, new SharedArrayBuffer(layoutOf(2).byteLength), 0, 2)
    globalThis.gc?.()
    await new Promise((resolve) => setTimeout(resolve, 50))
    for (let i = 0; i < 50; i++) {
      const segment = addon.createSegment(`rankmesh-test-${process.pid}-${i}`, 2 ** 20)
      new Uint8Array(segment.buffer).fill(i)
      segment.unlink()
      if (i % 2) segment.close()
    }
    globalThis.gc?.()
    await new Promise((resolve) => setTimeout(resolve, 50))
  },
  // In workers:
  async waits() {
    const { lane } = openLane(addon, shared, 1, 2)
    parentPort.postMessage('begun')
    for (;;) addon.wait(lane, 1, 0, 200_000)
  },
  async 'waits beside'() {
    const { lane } = openLane(addon, shared, 1, 2)
    for (let i = 0; i < 5; i++) void addon.waitAsync(lane, 1, 0, 60_000)
    parentPort.postMessage('begun')
  },
  // In children:
  async claims() {
    const segment = addon.openSegment(process.argv[4])
    segment.claim(1)
    console.log(process.pid)
    setInterval(() => segment, 1000)
  },
}

await scripts[name]()
