"""Sentences as models close their answers with, a line each, by what they are to be read as."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.test_reading_turns_of_phrase import CARE
from ultramed_rl.evaluation.reading.choice import read_choice

READ = {
    "A": """
In summary, A.
Only A applies to children.
So A it is.
The patient is in group B. The answer is A.
""",
    "B": """
The answer would be D if there were pain; here it is B.
Is the answer D? No. The answer is B.
Could it be D? Perhaps, but the answer is B.
Some say the answer is D. I disagree: the answer is B.
The incorrect statement is B.
A, C and D are true; B is the exception.
B is false, so the answer is B.
Statement B is false; the others are true. Answer: B.
Oral zinc is the best choice.
Oral zinc would be the correct answer.
Not D. The answer is B.
The answer is B, as D is wrong.
The answer is B as opposed to D.
The answer is B instead of D.
The answer is B (not D).
The answer is B, with D being a close second.
Answer: B (D is tempting but wrong).
Topical steroid would be the correct answer if the skin were inflamed. The answer is B.
If inflamed, C would be correct. The answer is B.
The answer isn't D but rather B.
It isn't D, it's B.
La respuesta no es A sino B.
Die Antwort ist nicht A, sondern B.
I lean towards B, yet D cannot be excluded.
The correct one: B
One that could be considered is D. The answer is B.
The answer appears to be D, but it's B.
It should be D. No, wait, it should be B.
D would be wrong. So it should be B.
The answer would be B because zinc helps.
C is to be avoided; B is best.
The answer is Oral Zinc!
the answer is 'oral zinc'
Answer: **oral zinc**.
Grade C evidence. The answer is B.
C is wrong, so B.
Not C but B, I think.
I would not choose C; I'd rather take B.
I first leaned towards C, but now I lean towards B.
I'm inclined to say B rather than C.
My choice is B, although C is close.
C is out, therefore B.
I'd go for B instead of C.
I would say B before C.
It isn't C; I'd say it's B.
I rejected C and settled on B.
I'm inclined to say B, though C is possible.
I'd pick B, not C.
C is close, but B wins.
Choose B over C.
I'd trust B more than C.
C was wrong, B is right.
Not C, so B.
""",
    "C": """
The patient has hepatitis B. The answer is C.
EXCEPT question. All are true except C.
All of the statements are correct except for (C).
The answer is (C). (C) is correct because (B) is wrong.
The right one for him is C.
The answer is B. Actually, no: C.
It's probably going to be C.
The answer is B. Scratch that, C.
I was going to say B, but scratch that, C.
If I had to pick one, it would be C.
If I had to choose, I'd say C.
I feel that C is the way to go.
I'm torn between B and C, but I'd end up with C.
I would not choose B. I would choose C.
Rather than B, I'd choose C.
Sorry, that should have been C.
All things considered, I prefer C.
I believe that C is what they are after.
I'd be tempted to say B, yet it's C.
I am going with C on this one.
I'd rule out A, B and D, which means C.
A, B and D can be discarded. C.
I'd be comfortable answering C.
My vote goes to C.
I'm sticking with C.
I keep coming back to C.
Let's settle this: C.
So my money would be on C, not B.
Hold on, it is C.
The answer is A. No wait, C.
Final answer: A. Correction, C.
Answer: D. Hmm, on reflection I prefer C.
I was leaning towards A but I now favour C.
A was my first thought, but I'm going for C.
It might be A, but I'd still bet on C.
Neither A nor B convinces me, so I'd take C.
With A, B and D out of the way, that leaves us with C.
I would answer C.
We can be confident in C.
I'd argue for C.
In my opinion it's C.
In my view, C.
To me this looks like C.
Everything considered: C.
Most probably C.
Has to be C.
It simply must be C.
I'm fairly convinced it is C.
I am inclined to say C. The scapula is not involved here, and packs would burn the skin.
The steroid calms the inflammation, so I'd lean C.
I'd choose C ahead of B.
I'd plump for C.
C would be my choice.
C would be my pick.
I'm happy to go with C as the answer.
My instinct says C.
My gut feeling is C.
Based on this, I'd have to go with C.
I have decided on C.
I'm settling on C.
After weighing everything, I land on C.
I'd narrow it down to C.
There is only one candidate left: C.
No, that's not right. C.
Forget B. I want C.
I said B earlier. I take that back: C.
The answer is B. No, sorry, I meant C.
I almost said B, but C is the one.
Not A. Not B. It must be C.
I can exclude A and B. Between C and D, I prefer C.
C it has to be.
If pressed, C.
With some hesitation, C.
Likely C.
I'd say (C), although (B) is close.
Looking at all four, option C stands out.
I'd rather go with C than with B.
Considering the age of the child, I'd opt for C.
I think we should go with C because packs burn.
Ok, C.
I'd settle for C.
I have to say C.
I must go with C.
The way I see it, C.
That makes it C.
Which leaves C.
The likeliest of the four is C.
I first wrote B, but that was wrong: C.
Answer: B. Apologies, the answer should be C.
The answer is D. On second thoughts, C.
The answer is A. Actually I want to change that to C.
I wanted to say A. Wait. C.
It's a toss-up, but I'd go C.
I can rule out A. I can rule out B. D takes weeks. C.
If I were forced to choose, C.
I'm 80% sure that it's C.
As far as I can tell, it's C.
Honestly, I'd guess C.
Without more information I would still choose C.
C, definitely.
C, because packs burn.
I'd back C here.
I'm voting C.
""",
    "D": """
I'm confident that it's D.
My final answer: D, upward rotation
Answer = D
ANSWER: d
The answer is option (D), since the scapula rotates upward.
So the answer is D rather than B.
So the answer is D, not B.
The answer isn't B but D.
The answer is not B; it is D.
Not A, not B, not C, so D.
A, B and C are incorrect, so the answer is D.
By process of elimination, D.
By elimination, we're left with D.
The answer should be D (Upward rotation).
The answer ought to be D.
At first I thought B, but the answer is D.
The answer is B. Wait, no. The answer is D.
The answer is B... actually it's D.
The answer is B. Correction: D.
The answer is B. Hmm, that is wrong. It should be D.
I choose D over C.
I'd go with D here.
I'd lean toward D.
Let's go with (D).
D seems best, so D.
The most appropriate option is D.
Thus option D fits best.
**Answer:** **D**
**Final answer: D) Upward rotation**
<answer>D</answer>
answer_idx: D
(d)
d. upward rotation
Option D: Upward rotation.
Choice D is correct because the others are not.
Among the choices, only D explains the finding.
Only option D is consistent with this.
La respuesta correcta es la D.
La respuesta es: D
Die richtige Antwort ist D.
La bonne réponse est D.
La réponse n'est pas B mais D.
The correct choice would appear to be D.
The answer, as discussed above, must be (D).
I would say D.
My answer remains D.
I stand by D.
The answer to this question is D.
The right one is D.
The one that fits is D.
The answer is likely D but could be B.
Final Answer: The final answer is D. I hope it is correct.
Hence, (D).
In conclusion, D.
In summary, option D.
So D it is.
Definitely D.
The answer is D. D. D.
The answer is D!!!
The answer is 'D'.
The answer is “D”.
The answer is 「D」
答案是D。
故选D
B would be correct, but the answer is D.
D must be correct.
D should be the right choice.
D appears to be correct.
D seems to be the best answer.
Only D explains the pain.
Leaning towards B, but the answer is D.
The only correct one is D.
The answer would seem to be D.
That should be D.
Answer (D).
Ans: D
Answer- D
Answer – D
Answer → D
The answer is D ✅
✅ D. Upward rotation
I think the answer is D, but I also considered B.
Initially I chose B; on reflection I choose D.
The answer is B only if he is a child. He is an adult, so the answer is D.
The answer is D. This is because B is wrong, C is wrong and A is wrong.
B is not the answer. C is not the answer. D is the answer. A is not the answer.
The answer is D. The answer is not B.
The answer is neither A nor B but D.
The answer is D, not because of pain but because of rotation.
The answer is D. Upward rotation is the correct movement.
Answer: D. Upward rotation. Explanation: B. Oral zinc is used for diarrhoea.
""",
    "contradiction": """
I would say A. Or B.
The answer is A. Or B.
The answer is (A). Or (B)?
The answer is B or D.
The answer is both B and D.
I'm inclined to say B or C.
My pick would be B and C.
It has to be B or C.
I'm leaning towards A or B.
My guess: A or C.
I would accept A and C.
I'd accept either B or C.
I'm down to B or C.
It's B or C, I can't tell.
B and C, I'd say.
""",
    "none": """
The correct answer is not listed.
None of these options is correct.
I cannot determine the answer from the data.
Option A is wrong. Option B is wrong. Option C is wrong.
Oral zinc is not the correct answer.
The answer remains unclear.
I wouldn't say D.
I'd say neither.
I would never say D.
The right one isn't D.
The right one depends on the case.
In conclusion, D is not supported.
In summary, A patient like this needs rest.
Topical steroid would not be the correct answer.
D seems to be wrong.
D might be correct.
D may be the best answer.
The answer does not appear to be D.
The answer is zinc.
Upward rotation is incorrect.
Not only D explains the pain.
I would not choose C.
I wouldn't go with C.
I am not inclined to say C.
It has to be anything but C.
I'd rule out C.
I would avoid C.
I'm not leaning towards C.
Let me look at C.
I can't decide between B and C.
My pick would not be C.
The patient has hepatitis C.
He was given vitamin C.
I'd hesitate to say C.
Nobody would pick C.
Students often go for C.
It could be C.
Let's start with C.
Is it going to be C?
I doubt it's C.
I wouldn't put my money on C.
C is tempting, but I can't commit to it.
My pick is certainly not C.
I refuse to say C.
I'd steer clear of C.
We were asked about C.
It's hard to say whether it's C.
I was told it is hepatitis C.
She was put on vitamin C.
I'm stuck between A and C.
Surely nobody thinks it's C?
I would need more data to pick C.
C would be my last choice.
I'd sooner pick anything than C.
I'd rather not say C.
C would not be my pick.
I'm not sold on C.
I can't see how it could be C.
I disagree with C.
I have nothing against C.
I'm unsure about C.
Don't choose C.
It is anything but C.
This rules out C.
My answer depends on B and C.
The steroid is described in C.
My sister has hepatitis C.
Let us begin with C.
Would you choose C?
I would hesitate to choose C.
I'm not choosing C.
Picking C would be a mistake.
That's the argument against C.
I'd hate to go with C.
What about C?
I'd put C last.
He tested positive for hepatitis C.
I've only looked at C.
The trial compared B with C.
Many of us would say C.
""",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(text, expected) for expected, lines in READ.items() for text in lines.strip().splitlines()],
)
def test_closing_sentences(text: str, expected: str) -> None:
    reading = read_choice(text, CARE)
    assert (reading.given or (reading.problem,)) == (expected,)
