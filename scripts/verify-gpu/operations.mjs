// Every operation of a device but products: the CUDA device against the CPU device on the same random data, bits where they are promised.
import { decode, dtypeSize, encode, openDevice, Tensor } from 'rankmesh'
import { FLOATS, LEAST, Random, Skip, STEP, sameBits, within } from './checks.mjs'

export async function run(report, { seed, quick, sanitized }) {
  const random = new Random(seed)
  const [device, cpu] = [await openDevice('cuda:0'), await openDevice('cpu')]
  const tokens = quick ? [1, 9] : [1, 3, 9, 130]
  const odd = quick ? 77 : 1031

  /**
   * Results of `compute(device, place)` on both devices: the same bits, or within `rel` of the value and `abs`, and a step of the result's dtype.
   * `place` puts the values of a tensor there, `shift` elements into a longer storage.
   */
  async function both(what, compute, { bits = false, rel = 2 ** -18, abs = 2 ** -20 } = {}) {
    const found = []
    for (const on of [device, cpu]) {
      const held = []
      const keep = (tensor) => {
        held.push(tensor)
        return tensor
      }
      const place = (values, shape, dtype = 'float32', shift = 0) => {
        const bytes = values instanceof Uint8Array && dtype !== 'uint8' ? values : encode(dtype, values)
        const before = shift * dtypeSize(dtype)
        const padded = new Uint8Array(bytes.length + 2 * before).fill(0xff)
        padded.set(bytes, before)
        if (shift === 0) return keep(Tensor.fromBytes(bytes, shape, dtype, on))
        const whole = keep(Tensor.fromBytes(padded, [padded.length / dtypeSize(dtype)], dtype, on))
        return keep(keep(whole.narrow(0, shift, bytes.length / dtypeSize(dtype))).reshape(shape))
      }
      const results = [compute(on, place)].flat()
      found.push(await Promise.all(results.map(async (tensor) => ({ dtype: tensor.dtype, bytes: await tensor.bytes() }))))
      for (const tensor of [...held, ...results]) tensor.dispose()
    }
    const [there, here] = found
    for (const [i, { dtype, bytes }] of there.entries()) {
      const name = `${what}${there.length > 1 ? `, result ${i}` : ''}`
      if (bits || !(dtype in STEP)) sameBits(name, bytes, here[i].bytes)
      else {
        const expected = decode(dtype, here[i].bytes)
        const step = dtype === 'float32' ? 0 : STEP[dtype]
        within(name, decode(dtype, bytes), expected, (j) => (rel + step) * Math.abs(expected[j]) + abs + 2 * LEAST[dtype])
      }
    }
  }

  await report.check('write, read and copy, any alignment', async () => {
    for (const dtype of [...FLOATS, 'uint8', 'uint32']) {
      for (const [n, from, to] of [
        [odd, 1, 3],
        [4099, 0, 5],
        [quick ? 8191 : 3_000_001, 2, 0],
      ]) {
        const bytes = Uint8Array.from({ length: n * dtypeSize(dtype) }, () => random.int(256))
        const target = new Uint8Array(bytes.length)
        const copied = (on, place) => {
          const [a, b] = [place(bytes, [n], dtype, from), place(target, [n], dtype, to)]
          on.copy(a, b)
          return [b.share(), a.share()]
        }
        await both(`${n} of ${dtype}`, copied, { bits: true })
      }
    }
  })

  await report.check('embedding', async () => {
    const [rows, n] = [37, 96]
    for (const dtype of [...FLOATS, 'q8_0', 'q4_0']) {
      const block = { q8_0: 34, q4_0: 18 }[dtype]
      const table = block
        ? Uint8Array.from({ length: rows * n * dtypeSize(dtype) }, () => random.int(256))
        : encode(dtype, random.floats(rows * n))
      for (let at = 0; block && at < table.length; at += block) table.set(encode('float16', [random.normal()]), at)
      for (const count of tokens) {
        const ids = Uint32Array.from({ length: count }, () => random.int(rows + 20))
        for (const to of FLOATS) {
          const look = (on, place) => on.embedding(place(ids, [count], 'uint32'), place(table, [rows, n], dtype), { first: 10, dtype: to })
          await both(`${count} of ${dtype} as ${to}`, look, { bits: true })
        }
      }
    }
  })

  await report.check('add', async () => {
    for (const dtype of FLOATS) {
      for (const shift of [0, 1]) {
        const [a, b] = [random.floats(odd), random.floats(odd)]
        await both(`${dtype}`, (on, place) => on.add(place(a, [odd], dtype, shift), place(b, [odd], dtype)), { bits: true })
      }
    }
  })

  await report.check('cast', async () => {
    const values = random.floats(odd, 'float32', 3)
    // Halves between two values, what is too large or too small, infinities.
    const hard = [
      1 + 2 ** -8,
      1 + 2 ** -11,
      65519,
      65520,
      1e30,
      3.4e38,
      2 ** -25,
      1e-40,
      -0,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
    ]
    values.set(hard, 3)
    for (const from of FLOATS) {
      for (const to of FLOATS) await both(`${from} to ${to}`, (on, place) => on.cast(place(values, [odd], from, 1), to), { bits: true })
    }
  })

  await report.check('siluMul', async () => {
    for (const dtype of FLOATS) {
      for (const count of tokens) {
        const x = random.floats(count * 2 * odd, dtype, 4)
        await both(`${count} of ${dtype}`, (on, place) => on.siluMul(place(x, [count, 2 * odd], dtype)))
      }
    }
  })

  await report.check('rmsNorm', async () => {
    for (const dtype of FLOATS) {
      for (const count of tokens) {
        for (const [n, zeroCentered] of [
          [odd, false],
          [quick ? 128 : 4096, true],
        ]) {
          const [x, weight] = [random.floats(count * n, dtype), random.floats(n, dtype)]
          const norm = (on, place) => on.rmsNorm(place(x, [count, n], dtype), place(weight, [n], dtype), { eps: 1e-5, zeroCentered })
          await both(`${count} x ${n} of ${dtype}`, norm)
        }
      }
    }
  })

  await report.check('softmax', async () => {
    for (const count of tokens) {
      const x = random.floats(count * odd, 'float32', 5)
      await both(`${count} x ${odd}`, (on, place) => on.softmax(place(x, [count, odd])), { rel: 2 ** -12, abs: 2 ** -126 })
    }
  })

  await report.check('argmax and topK, with equals', async () => {
    for (const count of tokens) {
      for (const n of [5, odd, quick ? 300 : 32_003]) {
        const x = Float32Array.from({ length: count * n }, () => random.int(n))
        const largest = (on, place) => {
          const at = place(x, [count, n])
          const { values, indices } = on.topK(at, Math.min(n, 40))
          return [on.argmax(at), values, indices]
        }
        await both(`${count} x ${n}`, largest, { bits: true })
      }
    }
  })

  await report.check('ropeAppend and attention', async () => {
    const [heads, kvHeads] = [6, 2]
    for (const dim of [40, 64]) {
      for (const count of tokens) {
        for (const before of [0, quick ? 13 : 77]) {
          const capacity = before + count + 3
          const x = random.floats(count * (heads + 2 * kvHeads) * dim)
          const kept = [random.floats(capacity * kvHeads * dim), random.floats(capacity * kvHeads * dim)]
          const angle = (i) => Math.floor(i / dim) * 10_000 ** (-(Math.floor(i / 2) % (dim / 2)) / (dim / 2))
          const table = Float32Array.from({ length: capacity * dim }, (_, i) => (i % 2 ? Math.sin(angle(i)) : Math.cos(angle(i))))
          for (const told of [false, true]) {
            for (const window of [0, 7]) {
              const attend = (on, place) => {
                const [keys, values] = kept.map((cache) => place(cache, [capacity, kvHeads * dim]))
                const start = told ? place([before], [1], 'uint32') : before
                const options = { keys, values, heads, kvHeads, dim, start }
                const q = on.ropeAppend(place(x, [count, (heads + 2 * kvHeads) * dim]), {
                  ...options,
                  table: place(table, [capacity, dim / 2, 2]),
                })
                return [q, on.attention(q, { ...options, window }), keys.share(), values.share()]
              }
              const what = `${count} at ${before}${told ? ' (told by a tensor)' : ''}, heads of ${dim}, window ${window}`
              await both(what, attend, { rel: 2 ** -14, abs: 2 ** -14 })
            }
          }
        }
      }
    }
  })

  await report.check('portable: the bits of the CPU', async () => {
    const [heads, kvHeads, dim] = [6, 2, 40]
    for (const count of tokens) {
      for (const dtype of FLOATS) {
        const x = random.floats(count * 2 * odd, dtype, 4)
        await both(`siluMul, ${count} of ${dtype}`, (on, place) => on.siluMul(place(x, [count, 2 * odd], dtype), { portable: true }), {
          bits: true,
        })
        const norm = (on, place) => on.rmsNorm(place(x, [2 * count, odd], dtype), place(x.slice(0, odd), [odd], dtype), { portable: true })
        await both(`rmsNorm, ${count} of ${dtype}`, norm, { bits: true })
      }
      const [q, keys, values] = [count * heads, (count + 70) * kvHeads, (count + 70) * kvHeads].map((rows) => random.floats(rows * dim))
      const attend = (on, place) => {
        const cache = (floats) => place(floats, [count + 70, kvHeads * dim])
        const options = { keys: cache(keys), values: cache(values), heads, kvHeads, dim, start: 70, portable: true }
        return on.attention(place(q, [count, heads * dim]), options)
      }
      await both(`attention of ${count}`, attend, { bits: true })
    }
  })

  await report.check('matmulTree: sums of subtrees', async () => {
    const [k, outs, block] = [quick ? 128 : 1024, 33, 32]
    for (const count of tokens) {
      const [x, w] = [random.floats(count * k), random.floats(outs * k)]
      const sums = (on, place) => on.matmulTree(place(x, [count, k]), place(w, [outs, k], 'bfloat16'), { block, first: 3 })
      await both(`${count} tokens`, sums, { abs: k * 2 ** -20 })
    }
  })

  await report.check('times of kernels', async () => {
    const x = Tensor.full([1024], 1, { device })
    const times = await device.profile(async () => {
      device.add(x, x).dispose()
      await device.sync()
    })
    x.dispose()
    if (!times?.some(({ kernel, runs, nanoseconds }) => kernel.startsWith('add') && runs === 1 && nanoseconds > 0)) {
      throw new Error(`one add gave ${JSON.stringify(times)}`)
    }
    return times.map(({ kernel, nanoseconds }) => `${kernel} ${(nanoseconds / 1000).toFixed(1)} us`).join(', ')
  })

  await report.check('more memory than there is: a typed error, and the device works on', async () => {
    if (sanitized) throw new Skip('the sanitizer takes what the driver refuses for an error')
    const error = await (async () => Tensor.empty([2 ** 40], { device }))().then(
      () => null,
      (thrown) => thrown,
    )
    if (error?.code !== 'ERR_OUT_OF_MEMORY') throw new Error(`4 TiB gave ${error?.code ?? 'a tensor'}: ${error?.message}`)
    const x = Tensor.full([3], 2, { device })
    within('after it', await device.add(x, x).data(), [4, 4, 4], () => 0)
  })
  device.dispose()
  cpu.dispose()
}
