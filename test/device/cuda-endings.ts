// Ends a program in one of several ways while a CUDA device has work: run as a program of its own by cuda-endings.test.ts.
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { openDevice } from '../../runtime/device/open.ts'

/** Work that takes a while, handed over and not waited for. */
function load(device: CudaDevice): Tensor {
  const x = Tensor.full([1000], 1, { device })
  let y = x
  for (let i = 0; i < 100; i++) y = device.add(y, x)
  return y
}

const device = (await openDevice('cuda')) as CudaDevice
const ending = isMainThread ? process.argv[2] : 'in a worker'
switch (ending) {
  case 'idle':
    await device.sync()
    console.log('done')
    break
  case 'unread':
    load(device)
    console.log('done')
    break
  case 'exit':
    load(device).data()
    console.log('done')
    setTimeout(() => process.exit(0), 50)
    break
  case 'in a worker':
    load(device).data()
    parentPort?.postMessage('busy')
    break
  case 'worker': {
    const worker = new Worker(new URL(import.meta.url))
    await new Promise((resolve) => worker.once('message', resolve))
    await worker.terminate()
    const x = Tensor.full([4], 1, { device })
    console.log(((await device.add(x, x).data()) as Float32Array)[0] === 2 ? 'done' : 'wrong')
    break
  }
  case 'collected': {
    // Views that nobody holds any more give their streams and threads back, and what they recorded still happens.
    const x = Tensor.full([4], 1, { device })
    const y = Tensor.full([4], 0, { device })
    for (let i = 0; i < 200; i++) {
      const view = device.view()
      view.add(x, y, { out: y })
      if (i % 2 === 0) await view.sync()
    }
    for (let i = 0; i < 5; i++) {
      ;(globalThis as unknown as { gc(): void }).gc()
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    const sum = ((await device.add(x, y).data()) as Float32Array)[0]
    const { readdirSync, readFileSync } = await import('node:fs')
    const threads = readdirSync('/proc/self/task').length
    const streams = Number(readFileSync(process.env.RANKMESH_CUDA_DOUBLE_CONTROL as string).readBigInt64LE(4096 + 3 * 8))
    console.log(sum === 201 && threads < 150 && streams < 150 ? 'done' : `${sum}, ${threads} threads, ${streams} streams`)
    break
  }
  default:
    throw new Error(`No such ending: ${ending}`)
}
