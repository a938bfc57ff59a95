// A rank that comes too late, or whose device is busy for too long: the others are told within the deadline who it was, and a new group works.
import { Skip } from './checks.mjs'
import { runRanks } from './groups.mjs'

/** Beyond the deadline, until the error must be there. */
const SLACK_MS = 1500

export async function run(report, { quick }) {
  const limitMs = quick ? 400 : 1000
  const cases = [
    { name: 'control: a rank that is late, but not too late', plan: { lateMs: limitMs / 5 }, fails: false },
    { name: 'a rank that comes too late', plan: { lateMs: limitMs + SLACK_MS + 500 }, fails: true },
    { name: 'control: a device that is busy, but not for too long', plan: { busyMs: limitMs / 5 }, fails: false },
    { name: 'a device that is busy for too long', plan: { busyMs: limitMs + SLACK_MS + 500 }, fails: true },
  ]
  for (const placement of ['local', 'thread', 'process']) {
    for (const ranks of quick ? [2] : [2, 4]) {
      for (const { name, plan, fails } of cases) {
        await report.check(`${name}: ${ranks} ranks, ${placement}`, async () => {
          if (plan.busyMs && placement === 'local')
            throw new Skip('ranks of one thread on one GPU are commands of its streams: none waits by spinning')
          const results = await runRanks(
            { task: 'late', placement, ranks, devices: ['cuda:0'], limitMs, busySize: quick ? 64 : 2048, ...plan },
            { seconds: 90 },
          )
          return judge(results, { fails, limitMs, last: ranks - 1 })
        })
      }
    }
  }
}

/** @throws where a rank was told something else than it should be. */
function judge(results, { fails, limitMs, last }) {
  for (const [rank, { told, after }] of results.entries()) {
    const { code, rank: named, message, milliseconds } = told
    if (after.code !== null) throw new Error(`rank ${rank}: the new group failed: ${after.message}`)
    if (!fails && code !== null) throw new Error(`rank ${rank}: ${code} ${message}`)
    if (!fails || rank === last) continue
    if (code !== 'ERR_TIMEOUT' || named !== last) throw new Error(`rank ${rank} was told ${code} of rank ${named}: ${message}`)
    if (milliseconds > limitMs + SLACK_MS)
      throw new Error(`rank ${rank} was told after ${milliseconds.toFixed(0)} ms, with a deadline of ${limitMs}`)
  }
  const [{ told }] = results
  return fails ? `told after ${told.milliseconds.toFixed(0)} ms: ${told.message}` : `done after ${told.milliseconds.toFixed(0)} ms`
}
