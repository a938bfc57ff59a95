// npm run bench [-- NAME ...]: runs the named benchmarks, or lists them.
import * as bandwidth from './bandwidth.mjs'
import * as crossings from './crossings.mjs'
import * as decode from './decode.mjs'
import * as enqueue from './enqueue.mjs'
import * as fused from './fused.mjs'
import * as host from './host.mjs'
import * as invariant from './invariant.mjs'
import * as loops from './loops.mjs'
import * as moe from './moe.mjs'
import * as patterns from './patterns.mjs'
import * as peers from './peers.mjs'
import * as plans from './plans.mjs'
import * as ranks from './ranks.mjs'

const BENCHMARKS = { ranks, invariant, fused, patterns, moe, bandwidth, crossings, enqueue, host, loops, decode, plans, peers }
const names = process.argv.slice(2)

if (names.length === 0) {
  console.log('npm run bench -- NAME ...\n')
  for (const [name, { about }] of Object.entries(BENCHMARKS)) console.log(`  ${name.padEnd(10)} ${about}`)
}
for (const name of names) {
  const benchmark = BENCHMARKS[name]
  if (!benchmark) throw new Error(`No benchmark ${name}; there are ${Object.keys(BENCHMARKS).join(', ')}`)
  console.log(`# ${name}: ${benchmark.about}\n`)
  await benchmark.run()
  console.log()
}
