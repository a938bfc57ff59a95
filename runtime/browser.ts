// The public face of Rankmesh in a page or a worker of a browser: all that needs neither files nor processes.
export * from './api.ts'
