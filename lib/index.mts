/** The same package for `import`: one set of classes and one connection for each thread, however it was loaded. */
export * from './index.js';
