// Planted stalls: a rank that comes late must be waited for. Each test has its control, the same program without the wait, which must fail.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const devices = [await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of devices) device.dispose()
})

const STALL_MS = 40
const LATE = 1
const stall = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, STALL_MS))

/** Every rank's operand, in a slice that holds NaN until the rank writes it; the late rank does so after a stall. */
async function operand({ rank, comm }: RankContext): Promise<{ x: Tensor; written: Promise<void> }> {
  const x = await comm.allocate([64])
  x.set(new Float32Array(64).fill(Number.NaN))
  await comm.barrier()
  const write = async (): Promise<void> => {
    if (rank === LATE) await stall()
    x.set(new Float32Array(64).fill(rank + 1))
  }
  return { x, written: write() }
}

describe.each([
  ['one device', devices.slice(0, 1)],
  ['two devices', devices],
])('on %s', (_, on) => {
  it('a collective waits for a rank that stalls before it', async () => {
    const sums = await launch({ ranks: 4, devices: on }, async (context) => {
      const { x, written } = await operand(context)
      await written
      return [...((await (await context.comm.allReduce(x)).data()) as Float32Array)]
    })
    for (const sum of sums) expect(sum).toEqual(new Array(64).fill(10))
  })

  it('control: without waiting for its own write, the late rank spoils the sum', async () => {
    const sums = await launch({ ranks: 4, devices: on }, async (context) => {
      const { x, written } = await operand(context)
      const sum = [...((await (await context.comm.allReduce(x)).data()) as Float32Array)]
      await written
      return sum
    })
    for (const sum of sums) expect(sum.every(Number.isNaN)).toBe(true)
  })

  it('a rank that stalls after a collective does not hold up what the others got from it', async () => {
    const order: number[] = []
    await launch({ ranks: 3, devices: on }, async ({ rank, comm, device }) => {
      const x = Tensor.full([8], rank, { device })
      const y = await comm.allReduce(x)
      x.set(new Float32Array(8).fill(Number.NaN)) // the operand is free again: the sum is of what it held at the call
      if (rank === LATE) await stall()
      expect([...((await y.data()) as Float32Array)]).toEqual(new Array(8).fill(3))
      order.push(rank)
    })
    expect(order.at(-1)).toBe(LATE)
  })

  it('barrier: nobody passes before the late rank comes; control: without it they do', async () => {
    for (const wait of [true, false]) {
      let came = false
      const passedBefore = await launch({ ranks: 3, devices: on }, async ({ rank, comm }) => {
        if (rank === LATE) {
          await stall()
          came = true
        }
        if (wait) await comm.barrier()
        return !came
      })
      expect(passedBefore.filter((_, rank) => rank !== LATE)).toEqual([!wait, !wait])
    }
  })
})
