#define PAGE_SIZE 4096 /* only for macros that our programs do not use */
