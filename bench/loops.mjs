// Products of the CPU device where the addon is not built: loops in TypeScript beside gpu.js, by WebAssembly and by JavaScript.
import { check, randomFloats, row, takeTurns } from './harness.mjs'

export const about = 'products of cpu without the addon: TypeScript loops, gpu.js by WebAssembly, gpu.js by JavaScript (npm install gpu.js)'

const ROUNDS = 15
const SHAPES = [
  [1, 2048, 2048],
  [64, 1024, 1024],
]

/** The devices, of an instance of the package that has looked for no addon yet. */
async function openAll() {
  const { RANKMESH_ADDON } = process.env
  process.env.RANKMESH_ADDON = 'off'
  const { openDevice, Tensor } = await import(`${import.meta.resolve('rankmesh')}?without-addon`)
  const devices = [await openDevice('cpu'), await openDevice('cpu:gpu.js')]
  if (RANKMESH_ADDON === undefined) delete process.env.RANKMESH_ADDON
  else process.env.RANKMESH_ADDON = RANKMESH_ADDON
  // Where there is no WebAssembly, gpu.js compiles to JavaScript.
  const { WebAssembly } = globalThis
  globalThis.WebAssembly = undefined
  devices.push(await openDevice('cpu:gpu.js').finally(() => Object.assign(globalThis, { WebAssembly })))
  return { devices, Tensor }
}

/** Random blocks of q8_0: a float16 scale from 1/64 to 1/32, and 32 bytes. */
function randomBlocks(count) {
  const bytes = Uint8Array.from({ length: (count / 32) * 34 }, () => Math.random() * 256)
  for (let at = 0; at < bytes.length; at += 34) bytes[at + 1] = 0x24 + Math.random() * 4
  return bytes
}

export async function run() {
  const { devices, Tensor } = await openAll()
  const widths = [24, 10, ...devices.map(() => 24)]
  const names = devices.map(({ description }) =>
    description.replace(/^CPU \((gpu\.js \w+, )?(.*)\)$/, (_, mode, rest) => mode?.slice(0, -2) ?? rest),
  )
  row(['ms a product', 'weights', ...names.map((name, i) => (i === 0 ? name : `${name} (of the loops)`))], widths)
  for (const [tokens, k, outs] of SHAPES) {
    for (const dtype of ['float32', 'q8_0']) {
      const [inputs, numbers] = [randomFloats(tokens * k), dtype === 'q8_0' ? randomBlocks(outs * k) : randomFloats(outs * k)]
      const contenders = {}
      let expected
      for (const [i, device] of devices.entries()) {
        const x = Tensor.from(inputs, { shape: [tokens, k], device })
        const w = Tensor.fromBytes(new Uint8Array(numbers.buffer), [outs, k], dtype, device)
        const out = Tensor.empty([tokens, outs], { device })
        const values = await w.data()
        expected ??= Float64Array.from({ length: tokens * 8 }, (_, at) => {
          const [row, o] = [(at >> 3) * k, (at & 7) * k]
          let sum = 0
          for (let j = 0; j < k; j++) sum += inputs[row + j] * values[o + j]
          return sum
        })
        contenders[names[i]] = async () => {
          device.matmul(x, w, { out })
          await device.sync()
        }
        await contenders[names[i]]()
        const y = await out.data()
        check(
          names[i],
          expected.map((_, at) => y[(at >> 3) * outs + (at & 7)]),
          expected,
          1e-5 * k,
        )
      }
      const times = Object.values(await takeTurns(contenders, ROUNDS))
      const cells = times.map((time, i) => (i === 0 ? time.toFixed(1) : `${time.toFixed(1)} (${(time / times[0]).toFixed(2)}x)`))
      row([`${tokens} x ${k} x ${outs}`, dtype, ...cells], widths)
    }
  }
  for (const device of devices) device.dispose()
}
