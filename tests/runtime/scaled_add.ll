; out = 2 * x + y over N x M floats, in tiles of 2 x 3, through the worker's scratch memory.
; Arguments: work, slots, scratch, scratch bytes, items, grid 0, grid 1, N, M,
;            x, 2 strides, y, 2 strides, out, 2 strides
define internal i64 @word(ptr %args, i64 %at) alwaysinline {
  %place = getelementptr i64, ptr %args, i64 %at
  %value = load i64, ptr %place
  ret i64 %value
}

define internal ptr @element(ptr %args, i64 %at, i64 %i, i64 %j) alwaysinline {
  %base_word = call i64 @word(ptr %args, i64 %at)
  %base = inttoptr i64 %base_word to ptr
  %at1 = add i64 %at, 1
  %at2 = add i64 %at, 2
  %s0 = call i64 @word(ptr %args, i64 %at1)
  %s1 = call i64 @word(ptr %args, i64 %at2)
  %o0 = mul i64 %i, %s0
  %o1 = mul i64 %j, %s1
  %offset = add i64 %o0, %o1
  %place = getelementptr float, ptr %base, i64 %offset
  ret ptr %place
}

define void @scaled_add(ptr %args) {
entry:
  %work_word = call i64 @word(ptr %args, i64 0)
  %work = inttoptr i64 %work_word to ptr
  %slots_word = call i64 @word(ptr %args, i64 1)
  %slots = inttoptr i64 %slots_word to ptr
  %slot = atomicrmw add ptr %slots, i64 1 monotonic
  %base_word = call i64 @word(ptr %args, i64 2)
  %bytes = call i64 @word(ptr %args, i64 3)
  %skip = mul i64 %slot, %bytes
  %mine_word = add i64 %base_word, %skip
  %mine = inttoptr i64 %mine_word to ptr
  %items = call i64 @word(ptr %args, i64 4)
  %grid1 = call i64 @word(ptr %args, i64 6)
  %n = call i64 @word(ptr %args, i64 7)
  %m = call i64 @word(ptr %args, i64 8)
  br label %claim

claim:
  %item = atomicrmw add ptr %work, i64 1 monotonic
  %more = icmp slt i64 %item, %items
  br i1 %more, label %tile, label %done

tile:
  %row_tile = sdiv i64 %item, %grid1
  %col_tile = srem i64 %item, %grid1
  %row = mul i64 %row_tile, 2
  %col = mul i64 %col_tile, 3
  br label %step

; t = 0..5 doubles x into scratch, t = 6..11 adds y to that
step:
  %t = phi i64 [ 0, %tile ], [ %t_next, %next ]
  %second = icmp sge i64 %t, 6
  %u = srem i64 %t, 6
  %di = sdiv i64 %u, 3
  %dj = srem i64 %u, 3
  %i = add i64 %row, %di
  %j = add i64 %col, %dj
  %i_in = icmp slt i64 %i, %n
  %j_in = icmp slt i64 %j, %m
  %inside = and i1 %i_in, %j_in
  br i1 %inside, label %body, label %next

body:
  %kept = getelementptr float, ptr %mine, i64 %u
  br i1 %second, label %adding, label %doubling

doubling:
  %px = call ptr @element(ptr %args, i64 9, i64 %i, i64 %j)
  %x = load float, ptr %px
  %twice = fmul float %x, 2.0
  store volatile float %twice, ptr %kept
  br label %next

adding:
  %py = call ptr @element(ptr %args, i64 12, i64 %i, i64 %j)
  %y = load float, ptr %py
  %half = load volatile float, ptr %kept
  %sum = fadd float %half, %y
  %po = call ptr @element(ptr %args, i64 15, i64 %i, i64 %j)
  store float %sum, ptr %po
  br label %next

next:
  %t_next = add i64 %t, 1
  %again = icmp slt i64 %t_next, 12
  br i1 %again, label %step, label %claim

done:
  ret void
}
