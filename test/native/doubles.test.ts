// The doubles of CUDA's libraries: the driver's keeps CUDA's rules, on streams, across processes, in graphs, and when things go wrong.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { Control } from '../support/cuda-control.ts'
import { buildDoubles, obstacle } from '../support/cuda-doubles.ts'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-doubles-'))
afterAll(() => rmSync(folder, { recursive: true }))
const why = obstacle()
const built = why === '' ? await buildDoubles() : null

/** Checks one thing in a process of its own; what the double says there, and what it has counted. */
async function check(what: string, settings = ''): Promise<{ said: string; control: Control }> {
  if (!built) throw new Error(why)
  const start = seed()
  const control = new Control(join(folder, `${what}-${start}`))
  const env = { ...process.env, RANKMESH_CUDA_DOUBLE: `seed ${start}; ${settings}`, RANKMESH_CUDA_DOUBLE_CONTROL: control.path }
  const { stdout, stderr } = await run(built.check, [built.cuda, what, String(start)], { env }).catch(
    (error: { stdout: string; stderr: string }) => error,
  )
  expect(stdout, `seed ${start}: ${stderr}`).toBe('good\n')
  control.close()
  return { said: stderr, control }
}

describe.skipIf(built === null)(`the doubles of CUDA's libraries${why === '' ? '' : `: skipped, ${why}`}`, () => {
  it('does the work of streams in order, and across streams and devices as events say', async () => {
    const { said, control } = await check('order')
    expect(said).toBe('')
    expect(control.counts()).toMatchObject({ allocations: 0, bytes: 0, streams: 0, events: 0, reports: 0 })
  })

  it.each([
    ['asynchrony', 'returns from launches before the work is done, that of pageable memory too'],
    ['null-stream', 'orders the null stream and those that do not ignore it'],
    ['kernels', 'runs kernels that wait for each other side by side, with barriers and shared memory, within its limits'],
    ['graphs', 'does again what was captured from several streams, and refuses what must not be captured'],
    ['faults', 'fails, forgets and lags as it is told'],
  ])('%s: %s', async (what) => {
    expect((await check(what)).said).toBe('')
  })

  it('lets a process reach the memory of another, with kernels of both that wait for each other', async () => {
    expect((await check('processes')).said).toContain('which is closed, is no memory of another process')
  })

  it.each([
    ['outside', /kernel double_add touches 0x\w+, which is no memory or was freed, .* in block \(\d+, 0, 0\), thread \d+/],
    ['misaligned', /kernel double_add: misaligned address, in block \(0, 0, 0\), thread \d+/],
    ['freed', /kernel double_add touches 0x\w+, which is no memory or was freed/],
    ['used', /memory at 0x\w+ is freed while a wait for a word, which has not ended, uses it/],
    ['peer', /kernel double_add on device 0 is given memory of device 1, without peer access/],
    ['diverged', /kernel double_diverge: a (barrier that a thread which has ended|thread ends while others)/],
    ['planted', /^$/],
  ])('loses one device, until it is taken anew, to what is %s', async (what, said) => {
    expect((await check(what)).said).toMatch(said)
  })

  it('stores to all memory that is bound to a multicast, and gives all of it back', async () => {
    const { said, control } = await check('multicast', 'multicast 1')
    expect(said).toBe('')
    expect(control.counts()).toMatchObject({ virtual: 0, multicastStores: 200, allocations: 0, reports: 0 })
  })

  it.each([
    ['unbound', /kernel double_to_all touches 0x/],
    ['read-multicast', /kernel double_add touches 0x/],
  ])('loses a device to a multicast that is %s', async (what, said) => {
    expect((await check(what, 'multicast 1')).said).toMatch(said)
  })

  it('finds bytes next to memory that were written', async () => {
    const { said, control } = await check('slack')
    expect(said).toMatch(/bytes next to 8 bytes of memory at 0x\w+ were written/)
    expect(control.counts().reports).toBe(1)
  })

  it('multiplies matrices of every type and order, when their stream comes to them', async () => {
    expect((await check('products')).said).toBe('')
  })

  it('ends hosts that read memory of a device', async () => {
    expect((await check('host', 'shut 0')).said).toMatch(/the host touches memory of a device at 0x/)
  })

  it('has no devices, and another version, where it is told so', async () => {
    expect((await check('no-devices', 'devices 0; version 11040')).said).toBe('')
  })
})
