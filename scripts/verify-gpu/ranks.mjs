// A program of several ranks: `node ranks.mjs JSON` runs one task in any placement, and writes what its ranks gave as a line of JSON.
import { Communicator, createDeviceComm, createHostGroup, importHostGroup, launch, Tensor } from 'rankmesh'
import { Random, sameBits } from './checks.mjs'
import { timeFusedNorm } from './norm.mjs'
import { collectives } from './sums.mjs'

const plan = JSON.parse(process.argv[2])
const TASKS = { collectives, late, norms, recorded }
const { task, ranks, placement, devices, timeoutMs = 60_000 } = plan

const results = await launch({ ranks, placement, devices, timeoutMs }, async (context) => {
  // What launch has chosen, or the one that is asked for.
  const { backend, memory } = plan
  const comm = backend
    ? new Communicator(context.host, await createDeviceComm(backend, { ...context, memory }), context.device)
    : context.comm
  const about = comm.describe()
  if (plan.expect && !about.includes(plan.expect)) throw new Error(`expected ranks joined by ${plan.expect}, and they are ${about}`)
  return { about, ...(await TASKS[task]({ ...context, comm }, plan)) }
})
console.log(JSON.stringify(results))
// What has failed on purpose may have left threads that wait.
if (task === 'late') process.exit(0)

async function codeOf(run) {
  const start = performance.now()
  const error = await run().then(
    () => null,
    (thrown) => thrown,
  )
  return { code: error?.code ?? null, rank: error?.rank ?? null, message: error?.message ?? '', milliseconds: performance.now() - start }
}

/** The last rank comes `lateMs` late to an all-reduce; then the same ranks form a new group. */
async function late({ rank, size, comm, device, host }, { placement, limitMs, lateMs, busyMs, busySize }) {
  const x = Tensor.full([1000], rank + 1, { device })
  const sum = async (group, timeoutMs) => {
    const y = await group.allReduce(x, { timeoutMs })
    const [value] = await y.data()
    y.dispose()
    if (value !== (size * (size + 1)) / 2) throw new Error(`the sum of ${size} ranks is ${value}`)
  }
  await sum(comm, 60_000)
  const kind = { local: 'local', thread: 'thread', process: 'shm' }[placement]
  const id = await host.broadcast(rank === 0 ? [...createHostGroup(kind).export()] : null, { root: 0 })
  const last = rank === size - 1
  const work = busyMs && last ? await busy(device, busySize, busyMs) : null
  await host.barrier()
  work?.()
  if (last && lateMs) await new Promise((resolve) => setTimeout(resolve, lateMs))
  const told = await codeOf(() => sum(comm, limitMs))
  if (told.code === null) await host.barrier()
  await device.sync().catch(() => {})
  comm.destroy()
  const again = await importHostGroup(Uint8Array.from(id)).connect({ size, rank, timeoutMs: 60_000 })
  const group = await Communicator.create(again, device)
  const after = await codeOf(() => sum(group, 60_000))
  return { told, after }
}

/** Gives what, by products of n x n, keeps the device's stream busy for so many milliseconds. */
async function busy(device, n, milliseconds) {
  const [a, b] = [Tensor.full([n, n], 1, { device }), Tensor.full([n, n], 1, { device })]
  const out = Tensor.empty([n, n], { device })
  const run = (times) => {
    for (let i = 0; i < times; i++) device.matmul(a, b, { out })
  }
  run(1)
  await device.sync()
  for (let times = 4; ; times *= 2) {
    const start = performance.now()
    run(times)
    await device.sync()
    const spent = performance.now() - start
    if (spent > milliseconds / 4) return () => run(Math.ceil((times * milliseconds) / spent))
  }
}

/** Times of fused norms, shape by shape. */
async function norms(context, { shapes, times }) {
  const found = []
  for (const { ranks, rows, n } of shapes) {
    const { plain, recorded } = await timeFusedNorm(context, { rows, n, times })
    found.push({ ranks, rows, n, microseconds: plain, graphMicroseconds: recorded })
  }
  return { found }
}

/** A step, run `launches` times and once, and the same from a recording. */
async function recorded({ rank, size, comm, device }, { seed, launches, rows, n }) {
  if (!comm.records) throw new Error(`this group does not record: ${comm.describe()}`)
  const random = new Random(seed)
  const parts = Array.from({ length: size }, () => random.floats(rows * n))
  const [first, gamma, table] = [random.floats(rows * n), random.floats(n), random.floats(n * n, 'float32', n ** -0.5)]
  const at = (values, shape) => Tensor.from(values, { shape, device })
  const [x, residual, weight, w] = [at(parts[rank], [rows, n]), at(first, [rows, n]), at(gamma, [n]), at(table, [n, n])]
  const [norm, sum, all] = [
    [rows, n],
    [rows, n],
    [rows, n * size],
  ].map((shape) => Tensor.zeros(shape, { device }))
  const step = async () => {
    await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out: norm })
    const y = device.matmul(norm, w)
    await comm.allReduce(y, { out: sum })
    const wide = await comm.allGather(sum)
    device.copy(wide, all)
    wide.dispose()
    y.dispose()
  }
  const found = []
  for (const records of [false, true]) {
    residual.set(first)
    if (!records) await step()
    const recording = records ? await comm.record(step) : { launch: step, dispose() {} }
    for (let i = 0; i < launches; i++) await recording.launch()
    found.push(await Promise.all([residual, norm, sum, all].map((tensor) => tensor.bytes())))
    recording.dispose()
  }
  const names = ['residual', 'norm', 'sum', 'gathered']
  for (const [i, name] of names.entries()) sameBits(`${name} after ${launches} launches`, found[1][i], found[0][i])
  if ((await residual.data()).every((value, i) => value === first[i])) throw new Error('the step has changed nothing')
  return {}
}
