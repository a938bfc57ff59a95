// Two ways to finish a sum whose partials a wire has brought: all of them to the device, whose kernel adds, or the sum, added on the host.
import { mkdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { adapterLine, row, takeTurns } from './harness.mjs'

export const about = 'partials of a wire to the device: all of them, or their sum added on the host'

const COUNTS = [1 << 10, 1 << 13, 1 << 16, 1 << 18, 1 << 20]
const RANKS = [2, 4, 8]

/** What the package does not export, from its source. */
async function internals() {
  const root = fileURLToPath(new URL('..', import.meta.url))
  const folder = `${root}/node_modules/.cache/rankmesh`
  mkdirSync(folder, { recursive: true })
  const outfile = `${folder}/crossings.mjs`
  const from = (path, names) => `export { ${names} } from './runtime/${path}.ts'\n`
  const contents =
    from('comm/webgpu/host-sum', 'sumSlice') +
    from('comm/webgpu/clusters', 'emptySlices, sitesOf, sliceAt, upload') +
    from('comm/webgpu/kernels', 'reduceSlices') +
    from('comm/webgpu/scope', 'Scope') +
    from('comm/algorithms', 'sumsOnHost') +
    from('core/dtype', 'decode, encode') +
    from('device/open', 'openDevice') +
    from('device/webgpu/platform-node', 'platform')
  await build({
    stdin: { contents, resolveDir: root, loader: 'ts' },
    ...{ outfile, bundle: true, format: 'esm', target: 'es2022', platform: 'node', conditions: ['node'], packages: 'external' },
    loader: { '.wgsl': 'text' },
  })
  return import(outfile)
}

export async function run() {
  const { decode, emptySlices, encode, openDevice, platform, reduceSlices, Scope, sitesOf, sliceAt, sumSlice, sumsOnHost, upload } =
    await internals()
  const device = await openDevice('webgpu')
  adapterLine(device)
  console.log(`Sums on the host: ${platform.addon() ? 'the native addon' : 'JavaScript, as the native addon is not built'}\n`)
  const [cluster] = sitesOf([device])
  const widths = [10, 10, 6, 12, 10, 8, 8]
  row(['elements', 'dtype', 'ranks', 'kernel ms', 'host ms', 'ratio', 'chosen'], widths)
  for (const dtype of ['float32', 'bfloat16', 'float16']) {
    for (const ranks of RANKS) {
      for (const count of COUNTS) {
        const width = dtype === 'float32' ? 4 : 2
        const parts = Array.from({ length: ranks }, () => {
          const shared = new Uint8Array(new SharedArrayBuffer(count * width))
          shared.set(
            encode(
              dtype,
              Float32Array.from({ length: count }, () => Math.random() - 0.5),
            ),
          )
          return shared
        })
        const storage = device.allocate(count * 4)
        const range = { buffer: storage.buffer, offset: storage.offset, byteLength: count * 4 }
        const y = { range, dtype: 'float32', use: 'w', count, padded: true }
        const finish = (slicesOf) => async () => {
          await Scope.run({ passing: true }, async (scope) => reduceSlices(cluster, slicesOf(scope), y, 'sum', ranks))
          await device.read(storage, 0, 4)
        }
        const kernel = finish((scope) => {
          const slices = emptySlices(scope, cluster, ranks, count * width, dtype)
          parts.forEach((part, i) => {
            upload(scope, cluster, sliceAt(slices, i, count * width), part)
          })
          return slices
        })
        const widened = (part) => (dtype === 'float32' ? part : new Uint8Array(decode(dtype, part).buffer))
        const host = finish((scope) => sumSlice(scope, cluster, parts.map(widened)))
        const bits = []
        for (const way of [kernel, host]) {
          await way()
          bits.push(Buffer.from(await device.read(storage, 0, count * 4)))
        }
        if (!bits[0].equals(bits[1])) throw new Error(`${count} ${dtype} of ${ranks} ranks: the two ways give different bits`)
        const times = await takeTurns({ kernel, host }, 9)
        const chosen = sumsOnHost('sum', dtype) ? 'host' : 'kernel'
        row(
          [count, dtype, ranks, times.kernel.toFixed(3), times.host.toFixed(3), `${(times.kernel / times.host).toFixed(2)}x`, chosen],
          widths,
        )
        storage.release()
      }
    }
  }
  device.dispose()
}
