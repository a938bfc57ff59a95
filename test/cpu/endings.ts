// Ends a program in one of several ways while a CPU device has work: run as a program of its own by native.test.ts.
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'

/** Half a second of work, handed over and not waited for. */
function load(device: CpuDevice): Tensor {
  const x = Tensor.full([128, 2048], 1, { device })
  const w = Tensor.full([2048, 2048], 0.001, { device })
  let y = x
  for (let i = 0; i < 70; i++) y = device.matmul(y, w)
  return y
}

const device = (await openDevice('cpu')) as CpuDevice
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
    console.log('done')
    break
  }
  case 'collected': {
    // Views that nobody holds any more give their threads back, and what they recorded still happens.
    const x = Tensor.full([4], 1, { device })
    for (let i = 0; i < 200; i++) {
      const view = device.view()
      view.add(x, x).dispose()
      if (i % 2 === 0) await view.sync()
    }
    for (let i = 0; i < 5; i++) {
      ;(globalThis as unknown as { gc(): void }).gc()
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    const sum = (await device.add(x, x).data()) as Float32Array
    const { readdirSync } = await import('node:fs')
    const threads = process.platform === 'linux' ? readdirSync('/proc/self/task').length : 0
    console.log(sum[0] === 2 && threads < 150 ? 'done' : `${sum[0]}, ${threads} threads`)
    break
  }
  default:
    throw new Error(`No such ending: ${ending}`)
}
