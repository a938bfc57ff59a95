// Programs that end while a CUDA device has work: they end at once and well, and let go of what they have.
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { bundle } from '../support/bundle.ts'
import { reason } from '../support/cuda.ts'
import { Control } from '../support/cuda-control.ts'

const program = await bundle('test/device/cuda-endings.ts')
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-cuda-endings-'))
afterAll(() => {
  for (const path of [folder, dirname(program)]) rmSync(path, { recursive: true, force: true })
})

if (reason) it.skip(`programs that end${reason}`, () => {})
else
  describe('programs that end in the middle', () => {
    it.each(['idle', 'unread', 'exit', 'worker', 'collected'])('%s', async (ending) => {
      const control = new Control(join(folder, ending))
      const env = {
        ...process.env,
        RANKMESH_ADDON: addonReport().path ?? 'off',
        RANKMESH_CUDA_DOUBLE: ending === 'collected' ? '' : 'delay 0 3000',
        RANKMESH_CUDA_DOUBLE_CONTROL: control.path,
      }
      const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--expose-gc', program, ending], { env, timeout: 60_000 })
      expect({ stdout, stderr }).toEqual({ stdout: 'done\n', stderr: '' })
      expect(control.counts()).toMatchObject({ reports: 0, imports: 0 })
      control.close()
    })
  })
