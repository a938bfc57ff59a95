// The native addon's functions: what they offer, what they refuse, and that neither a peer's death nor a thread's end takes others along.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { type Addon, ALARMED, ARRIVED, EXPIRED, type LaneWords } from '../../runtime/core/addon.ts'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { Random, seed } from '../support/random.ts'
import { LINE, layoutOf, openLane } from './member.mjs'
import { addon as loaded, reason } from './members.ts'

const run = promisify(execFile)
const addon = loaded as Addon
const SCRIPTS = join(import.meta.dirname, 'scripts.mjs')
const script = (name: string, ...args: string[]): Promise<{ stdout: string; stderr: string }> =>
  run(process.execPath, ['--expose-gc', SCRIPTS, name, addonReport().path as string, ...args], { timeout: 60_000 })

const lanes = (size: number): ReturnType<typeof openLane>[] => {
  const buffer = new SharedArrayBuffer(layoutOf(size).byteLength)
  return Array.from({ length: size }, (_, rank) => openLane(addon, buffer, rank, size))
}
let names = 0
const fresh = (): string => `rankmesh-test-${process.pid}-${Date.now()}-${names++}`

describe.skipIf(!loaded)(`the addon${reason}`, () => {
  it('says what it was built with, and why not with more', () => {
    const features = addon.features()
    expect(Object.keys(features).sort()).toEqual(['cuda', 'gloo', 'nccl', 'onednn', 'shm'])
    for (const { available, detail } of Object.values(features)) {
      expect(typeof available).toBe('boolean')
      expect(detail).not.toBe('')
    }
    expect(addonReport().tried.at(-1)?.outcome).toBe('loaded')
  })

  it('wait ends when all have posted, when the time is over, and at an alarm; epochs wrap', () => {
    for (const epoch of [1, 2 ** 31 - 1, -(2 ** 31), 0]) {
      const [a, b] = lanes(2).map(({ lane }) => lane) as [LaneWords, LaneWords]
      for (const member of [0, 1]) a.words[a.at + member * LINE] = (epoch - 1) | 0
      addon.post(a, epoch)
      expect(addon.wait(a, epoch, 0, 1000)).toBe(EXPIRED)
      addon.ring(a.words, 0, [a])
      expect(addon.wait(a, epoch, 0, 1e9)).toBe(ALARMED)
      addon.post(b, epoch)
      expect(addon.wait(a, epoch, 0, 0)).toBe(ARRIVED)
      expect(addon.wait(b, (epoch - 1) | 0, 1, 0)).toBe(ARRIVED)
      expect(addon.wait(b, (epoch + 1) | 0, 1, 0)).toBe(EXPIRED)
    }
  })

  it('waitAsync waits beside the event loop, many at once', async () => {
    const all = lanes(8)
    const waits = all.map(({ lane }) => addon.waitAsync(lane, 1, 0, 20_000))
    for (const { lane } of all) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      addon.post(lane, 1)
    }
    expect(await Promise.all(waits)).toEqual(all.map(() => ARRIVED))
    const { lane } = all[0] as (typeof all)[0]
    const alarmed = addon.waitAsync(lane, 2, 0, 20_000)
    await new Promise((resolve) => setTimeout(resolve, 20))
    addon.ring(lane.words, 0, [lane])
    expect(await alarmed).toBe(ALARMED)
    expect(await addon.waitAsync(lane, 2, 1, 20)).toBe(EXPIRED)
  })

  it('a pending wait keeps the process alive, a settled one does not', async () => {
    expect((await script('liveness')).stdout).toBe(`${EXPIRED} true\n`)
  })

  for (const name of ['terminate wait', 'terminate waitAsync', 'collected reducers'])
    it(`no crash: ${name}`, async () => expect(await script(name)).toEqual({ stdout: '', stderr: '' }))

  it('no crash: exit during waitAsync', async () => {
    await expect(script('exit during waitAsync')).rejects.toMatchObject({ code: 7, stderr: '' })
  })

  it('bad arguments throw, and never crash', () => {
    const start = seed()
    const random = new Random(start)
    const good = openLane(addon, new SharedArrayBuffer(layoutOf(2).byteLength), 0, 2)
    const values: unknown[] = [
      ...[undefined, null, true, 0, 1, 2, 3, -1, 0.5, 31, 33, 1e9, 2 ** 31, 2 ** 53, -(2 ** 53), Number.NaN, Number.POSITIVE_INFINITY, 1n],
      ...['', 'x', '../x', Symbol('x'), {}, [], [1], () => 1, new Date(0), Object.create(null), new Proxy({}, {})],
      ...[new SharedArrayBuffer(64), new ArrayBuffer(64), new DataView(new ArrayBuffer(64))],
      ...[new Int8Array(7), new Uint8Array(64), new Int32Array(0), new Int32Array(96), new Float32Array(5), new BigInt64Array(3)],
      ...[good.lane, good.lane.words, good.epoch, [good.lane], [new Float32Array(5), new Float32Array(5)]],
    ]
    const pick = (): unknown => {
      const value = values[random.int(values.length)]
      if (random.int(4) || value !== good.lane) return value
      return { ...good.lane, [['words', 'at', 'members', 'me', 'alarm'][random.int(5)] as string]: values[random.int(values.length)] }
    }
    // The last argument of a wait is how long: not random, or the test would take as long.
    const calls: Record<string, (...args: never[]) => unknown> = {
      post: (...args) => addon.post(args[0] as never, args[1] as never),
      wait: (...args) => addon.wait(args[0] as never, args[1] as never, args[2] as never, 1),
      ring: (...args) => addon.ring(args[0] as never, args[1] as never, args[2] as never),
      createReducer: (...args) => addon.createReducer(args[0] as never, args[1] as never, args[2] as never, args[3] as never),
      sumFloat32: (...args) => addon.sumFloat32(args[0] as never, args[1] as never),
      createSegment: (...args) => addon.createSegment(args[0] as never, args[1] as never).unlink(),
      openSegment: (...args) => addon.openSegment(args[0] as never),
      carried: (...args) => good.reducers[0](args[0] as never, args[1] as never, args[2] as never, args[3] as never, 1),
      placed: (...args) => good.reducers[1](args[0] as never, args[1] as never, args[2] as never, args[3] as never, 1),
    }
    let refused = 0
    for (let round = 0; round < 20_000; round++) {
      const [name, call] = Object.entries(calls)[random.int(Object.keys(calls).length)] as [string, (...args: unknown[]) => unknown]
      try {
        call(...Array.from({ length: random.int(6) }, pick))
      } catch (error) {
        refused++
        expect(error, `seed ${start}, round ${round}, ${name}`).toBeInstanceOf(Error)
        expect((error as Error).message, `seed ${start}, round ${round}, ${name}`).not.toBe('')
      }
    }
    expect(refused).toBeGreaterThan(10_000)
  })

  it('what lies outside is refused by name', () => {
    const { lane, epoch, reducers } = lanes(2)[0] as ReturnType<typeof openLane>
    const words = lane.words
    const bad: [object, RegExp][] = [
      [{ words: new SharedArrayBuffer(4096) }, /lane.words must be a typed array/],
      [{ words: new Float32Array(1000) }, /lane.words must be of Int32Array/],
      [{ at: -1 }, /lane.at/],
      [{ at: words.length - 2 * LINE + 1 }, /lane.at/],
      [{ members: 0 }, /lane.members/],
      [{ members: 2 ** 30 }, /lane.members/],
      [{ me: 2 }, /lane.me/],
      [{ me: -1 }, /lane.me/],
      [{ alarm: words.length }, /lane.alarm/],
    ]
    for (const [change, message] of bad) {
      expect(() => addon.post({ ...lane, ...change }, 1)).toThrow(message)
      expect(() => addon.waitAsync({ ...lane, ...change }, 1, 0, 1)).toThrow(message)
    }
    const memory = [new Uint8Array(256), new Uint8Array(256)]
    expect(() => addon.createReducer(lane, memory.slice(1), epoch, 0)).toThrow(/array of 2 typed arrays/)
    expect(() => addon.createReducer(lane, [new Uint8Array(256), new Uint8Array(264)], epoch, 0)).toThrow(/equal length/)
    expect(() =>
      addon.createReducer(
        lane,
        memory.map((view) => view.subarray(4, 204)),
        epoch,
        0,
      ),
    ).toThrow(/aligned/)
    expect(() =>
      addon.createReducer(
        lane,
        memory.map((view) => view.subarray(0, 64)),
        epoch,
        0,
      ),
    ).toThrow(/128 bytes/)
    expect(() => addon.createReducer(lane, memory, new Int32Array(0), 0)).toThrow(/epoch/)
    expect(() => reducers[0](new Uint8Array(8) as never, 0, 0, 0, 0)).toThrow(TypeError)
    expect(() => reducers[0](new Int32Array(8), 3 as never, 0, 0, 0)).toThrow(/op/)
    expect(() => reducers[1](new Int32Array(8), 0, 0, 0, 0)).toThrow(/lie in this member/)
    expect(() => addon.sumFloat32([new Float32Array(3)], new Float32Array(4))).toThrow(/equal length/)
    expect(() => addon.sumFloat32([], new Float32Array(4))).toThrow(/parts/)
    expect(epoch[0]).toBe(0)
  })

  it('a reduction that has not ended goes on only with its own array', () => {
    const [a, b] = lanes(2) as [ReturnType<typeof openLane>, ReturnType<typeof openLane>]
    const [mine, other] = [Float32Array.of(1, 2), Float32Array.of(10, 20)]
    expect(a.reducers[0](mine, 0, 1, 0, 0)).toBe(EXPIRED)
    expect(() => a.reducers[0](new Float32Array(2), 0, 1, 0, 0)).toThrow(/has not ended/)
    expect(b.reducers[0](other, 0, 1, 0, 0)).toBe(ARRIVED)
    expect(a.reducers[0](mine, 0, 1, 0, 0)).toBe(ARRIVED)
    expect([...mine, ...other]).toEqual([11, 22, 11, 22])
  })
})

const shm = loaded?.features().shm
const absent = loaded ? (shm?.available ? '' : `: skipped, ${shm?.detail}`) : reason

describe.skipIf(absent !== '')(`segments${absent}`, () => {
  it('hold the same memory for all who open them, zeroed, until all have let go', () => {
    const name = fresh()
    const made = addon.createSegment(name, 100_000)
    const opened = addon.openSegment(name)
    made.unlink()
    made.unlink()
    made.close()
    made.close()
    expect(opened.buffer.byteLength).toBe(100_000)
    expect(new Uint8Array(opened.buffer).every((byte) => byte === 0)).toBe(true)
    new Uint8Array(made.buffer)[99_999] = 7
    expect(new Uint8Array(opened.buffer)[99_999]).toBe(7)
    expect(() => addon.openSegment(name)).toThrow(expect.objectContaining({ code: 'ENOENT' }))
  })

  it('are refused where the name is taken or bad, or the memory is not there', () => {
    const name = fresh()
    const segment = addon.createSegment(name, 8)
    expect(() => addon.createSegment(name, 8)).toThrow(expect.objectContaining({ code: 'EEXIST' }))
    segment.unlink()
    for (const bad of ['', '/x', 'a/b', '..', 'a b', 'x'.repeat(201)])
      expect(() => addon.createSegment(bad, 8), bad).toThrow(/name must be/)
    for (const bad of [0, -1, 1.5, Number.NaN, 2 ** 60]) expect(() => addon.createSegment(fresh(), bad)).toThrow(/byteLength/)
    const large = fresh()
    const refused = { code: expect.stringMatching(/^(ENOSPC|ENOMEM)$/), message: expect.stringContaining(String(2 ** 46)) }
    expect(() => addon.createSegment(large, 2 ** 46)).toThrow(expect.objectContaining(refused))
    expect(() => addon.openSegment(large)).toThrow(expect.objectContaining({ code: 'ENOENT' }))
  })

  it.runIf(process.platform === 'linux')('are for this user alone', () => {
    const name = fresh()
    const segment = addon.createSegment(name, 8)
    expect(readdirSync('/dev/shm')).toContain(name)
    expect(statSync(`/dev/shm/${name}`).mode & 0o777).toBe(0o600)
    segment.unlink()
  })

  it.runIf(process.platform === 'linux')('that others may read or write are not opened', async () => {
    const { chmodSync } = await import('node:fs')
    const name = fresh()
    const segment = addon.createSegment(name, 8)
    for (const mode of [0o640, 0o604, 0o660]) {
      chmodSync(`/dev/shm/${name}`, mode)
      expect(() => addon.openSegment(name)).toThrow(expect.objectContaining({ code: 'EPERM' }))
    }
    chmodSync(`/dev/shm/${name}`, 0o600)
    addon.openSegment(name).close()
    segment.unlink()
  })

  it('know whose lock is held, here and elsewhere', () => {
    const name = fresh()
    const [made, opened] = [addon.createSegment(name, 8), addon.openSegment(name)]
    made.claim(3)
    made.claim(3)
    expect([made.claimed(3), opened.claimed(3), opened.claimed(2)]).toEqual([true, true, false])
    expect(() => opened.claim(3)).toThrow(expect.objectContaining({ code: 'EBUSY' }))
    made.close()
    expect(opened.claimed(3)).toBe(false)
    opened.claim(3)
    expect(() => made.claim(1)).toThrow(Error)
    for (const bad of [-1, 0.5, Number.NaN, 2 ** 40]) expect(() => opened.claim(bad)).toThrow(RangeError)
    opened.unlink()
  })

  it.skipIf(process.platform === 'win32')("a killed process's lock is free, also while nobody has asked for its end", async () => {
    const name = fresh()
    const segment = addon.createSegment(name, 8)
    // The shell becomes `sleep`, which never asks for the end of its child: that stays as a zombie.
    const shell = spawn('sh', ['-c', '"$@" & exec sleep 60', 'sh', process.execPath, SCRIPTS, 'claims', addonReport().path as string, name])
    try {
      const pid = Number(String((await once(shell.stdout, 'data'))[0]).trim())
      expect(segment.claimed(1)).toBe(true)
      process.kill(pid, 'SIGKILL')
      for (let i = 0; i < 200 && segment.claimed(1); i++) await new Promise((resolve) => setTimeout(resolve, 10))
      expect(segment.claimed(1)).toBe(false)
      process.kill(pid, 0)
    } finally {
      shell.kill('SIGKILL')
      segment.unlink()
    }
  })
})
