// Ranks in one thread, in threads, in processes and under a launcher, on the CUDA devices of a machine.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { devicesFor } from '../../runtime/scheduler/placement.ts'
import { bundle } from '../support/bundle.ts'
import { reason } from '../support/cuda.ts'
import { freePort } from '../support/free-port.ts'

const run = promisify(execFile)
const program = await bundle('test/device/cuda-launch-program.ts')

interface Result {
  rank: number
  size: number
  name: string
  sum: number
  host: number[]
}

async function results(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Result[]> {
  const variables = { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off', RANKMESH_TOKEN: 'a token for tests', ...env }
  const { stdout } = await run(process.execPath, [program, ...args], { env: variables })
  return JSON.parse(stdout.trim().split('\n').at(-1) as string)
}

const expected = (names: readonly string[]): Result[] =>
  names.map((name, rank) => {
    const size = names.length
    return { rank, size, name, sum: (size * (size + 1)) / 2, host: [(size * (size - 1)) / 2] }
  })

if (reason) it.skip(`ranks on CUDA devices${reason}`, () => {})
else
  describe('ranks on CUDA devices', () => {
    it.each(['local', 'thread', 'process'])('%s: take all devices of the machine in blocks', async (placement) => {
      expect(await results([placement, '3', 'cuda'])).toEqual(expected(['cuda:0', 'cuda:0', 'cuda:1']))
    })

    it.each(['local', 'thread', 'process'])('%s: share the one that is named', async (placement) => {
      expect(await results([placement, '2', 'cuda:1'])).toEqual(expected(['cuda:1', 'cuda:1']))
    })

    it('under a launcher each takes the one of its place on the machine', async () => {
      const port = await freePort()
      const env = (rank: number) => ({
        RANK: `${rank}`,
        WORLD_SIZE: '2',
        LOCAL_RANK: `${rank}`,
        LOCAL_WORLD_SIZE: '2',
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: `${port}`,
      })
      const both = await Promise.all([0, 1].map((rank) => results(['default', '-', 'cuda'], env(rank))))
      for (const one of both) expect(one).toEqual(expected(['cuda:0', 'cuda:1']))
    })

    it('rankmesh doctor tries each device, and says why there is none', async () => {
      const doctor = await bundle('runtime/cli/main.ts')
      const findings = async (env: NodeJS.ProcessEnv): Promise<Record<string, { found: boolean; detail: string }>> => {
        const variables = { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off', ...env }
        const { stdout } = await run(process.execPath, [doctor, 'doctor', '--json'], { env: variables })
        return Object.fromEntries((JSON.parse(stdout) as { name: string; found: boolean; detail: string }[]).map((one) => [one.name, one]))
      }
      const there = await findings({})
      for (const name of ['cuda:0', 'cuda:1'])
        expect(there[name]).toMatchObject({
          found: true,
          detail: 'Emulated CUDA device, compute capability 9.0, 4.0 GiB, 4 multiprocessors, kernels sm_90, cuBLASLt',
        })
      expect(there['addon:cuda']).toMatchObject({ found: true, detail: 'driver for CUDA 13.0, 2 devices' })
      const none = await findings({ RANKMESH_CUDA_PATH: '/nowhere/libcuda.so' })
      for (const name of ['cuda', 'addon:cuda'])
        expect(none[name]).toMatchObject({ found: false, detail: expect.stringContaining('/nowhere/libcuda.so') })
    })

    it('what `cuda` stands for', () => {
      expect(devicesFor(['cuda'], 1)).toEqual(['cuda'])
      expect(devicesFor(['cuda'], 8)).toEqual(['cuda:0', 'cuda:1'])
      expect(devicesFor(['cuda:0'], 8)).toEqual(['cuda:0'])
      expect(devicesFor(['cuda', 'cpu'], 8)).toEqual(['cuda', 'cpu'])
      expect([0, 1, 2, 3].map((rank) => devicesFor(['cuda'], 8, { rank, size: 4 })[0])).toEqual(['cuda:0', 'cuda:0', 'cuda:1', 'cuda:1'])
      expect(devicesFor(['cuda'], 8, { rank: 0, size: 1 })).toEqual(['cuda'])
    })
  })
