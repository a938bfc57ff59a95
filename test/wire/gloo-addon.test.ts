// Gloo groups of the addon by themselves: given back when nobody refers to them, refusals instead of crashes, an end of the process at any time.
import { spawn } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'

const gloo = loadAddon()?.features().gloo
const skip = gloo?.available ? undefined : (gloo?.detail ?? `no addon: ${addonReport().command}`)
const maybe = skip ? describe.skip : describe

const SETUP = `
  const addon = require(${JSON.stringify(addonReport().path)})
  const map = new Map()
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
  const store = { async set(key, value) { map.set(key, value) }, async get(key) { while (!map.has(key)) await sleep(1); return map.get(key) } }
  const connect = (prefix, rank, timeoutMs = 5000, host = '127.0.0.1') => addon.connectGloo({ rank, size: 2, host, prefix, timeoutMs }, store)
  const both = (prefix) => Promise.all([connect(prefix, 0), connect(prefix, 1)])
  const threads = () => require('node:fs').readdirSync('/proc/self/task').length
  const textOf = async (work) => { try { await work() } catch (error) { return error.message } }
`

/** Runs a program to its end: what it printed, and its code. */
function run(program: string): Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string; seconds: number }> {
  const start = performance.now()
  const child = spawn(process.execPath, ['--expose-gc', '-e', `${SETUP}(async () => {${program}})()`], { timeout: 30_000 })
  const ending = { stdout: '', stderr: '' }
  child.stdout.on('data', (text) => {
    ending.stdout += text
  })
  child.stderr.on('data', (text) => {
    ending.stderr += text
  })
  return new Promise((resolve) => {
    child.on('close', (code, signal) => resolve({ ...ending, code, signal, seconds: (performance.now() - start) / 1000 }))
  })
}

maybe(`gloo groups of the addon${skip ? ` (skipped: ${skip})` : ''}`, () => {
  it('give their threads back, closed or forgotten', async () => {
    const ending = await run(`
      const before = threads()
      for (let i = 0; i < 20; i++) {
        const groups = await both(i + '/')
        await Promise.all(groups.map((group) => group.exchange(new Uint8Array(100000), 5000)))
        if (i % 2) for (const group of groups) group.close()
      }
      for (let i = 0; i < 20 && threads() > before; i++) { gc(); await sleep(20) }
      console.log(threads() - before)`)
    expect(ending).toMatchObject({ code: 0, stderr: '' })
    expect(Number(ending.stdout)).toBeLessThanOrEqual(1) // of the device, which the last group may still hold
  })

  it('refuse what they cannot do', async () => {
    const ending = await run(`
      const [a] = await both('a/')
      for (const work of [() => a.exchange(5, 1), () => a.exchangePair(0, 0, new Uint8Array(1), 1), () => a.allReduce(new Uint8Array(4), 0, 1, 1),
        () => a.allReduce(new Float32Array(4), 3, 1, 1), () => addon.connectGloo({}, {}), () => connect('b/', 2),
        () => connect('c/', 0, 300, 'no.such.host.invalid'), async () => { a.close(); await a.exchange(new Uint8Array(1), 1) }]) {
        console.log(typeof (await textOf(work)))
      }`)
    expect(ending).toMatchObject({ code: 0, stdout: 'string\n'.repeat(8), stderr: '' })
  })

  it('survive a store that misbehaves', async () => {
    const ending = await run(`
      for (const bad of [{ set() {}, get() {} }, { async set() {}, async get() { return 5 } }, { async set() {}, async get() { throw new Error('broken') } },
        { async set() {}, async get() { return new Uint8Array(3) } }, {}]) {
        console.log(typeof (await textOf(() => addon.connectGloo({ rank: 0, size: 2, host: '127.0.0.1', prefix: '', timeoutMs: 300 }, bad))))
      }`)
    expect(ending).toMatchObject({ code: 0, stdout: 'string\n'.repeat(5), stderr: '' })
  })

  it('let the process end at any time', async () => {
    const ending = await run(`
      const [a] = await both('a/')
      a.exchange(new Uint8Array(1), 60000).catch(() => {})
      a.exchangePair(1, 0, new Uint8Array(1), 60000).catch(() => {})
      connect('never/', 0, 60000).catch(() => {})
      setTimeout(() => process.exit(7), 100)`)
    expect(ending).toMatchObject({ code: 7, stderr: '' })
    expect(ending.seconds).toBeLessThan(5)
  })

  it('do not hold a process that waits for nothing', async () => {
    const ending = await run(`globalThis.kept = await both('a/')`)
    expect(ending).toMatchObject({ code: 0, stderr: '' })
    expect(ending.seconds).toBeLessThan(5)
  })
})
